"""The parameters that every stage which trains by gradients has (spec/algorithms.md)."""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import Choice, Decimal, Integer, Parameter

DTYPES = ("bf16", "fp32")
SCHEDULES = ("constant", "cosine", "linear")

TRAINING: tuple[Parameter, ...] = (
    Integer(name="batch_size", default=8, least=1, help="rows of a forward pass"),
    Choice(
        name="compute_dtype", options=DTYPES, default="bf16", help="what the base is computed in"
    ),
    Integer(name="epochs", default=1, least=1, help="passes over the rows"),
    Integer(
        name="gradient_accumulation",
        default=1,
        least=1,
        help="forward passes of an optimiser step",
    ),
    Decimal(name="learning_rate", default="0.0002", help="peak rate of the optimiser"),
    Decimal(
        name="max_grad_norm",
        default="1",
        most="1000000",
        help="gradients are scaled down to this norm; 0 for never",
    ),
    Integer(name="max_length", default=1024, least=1, help="most tokens of a row"),
    Integer(name="max_steps", default=0, help="most optimiser steps; 0 for all of the epochs"),
    Choice(
        name="schedule",
        options=SCHEDULES,
        default="linear",
        help="how the rate falls after the warm-up",
    ),
    Integer(name="warmup_steps", default=0, help="steps in which the rate rises to its peak"),
    Decimal(name="weight_decay", default="0", help="decoupled decay of the weights"),
)
