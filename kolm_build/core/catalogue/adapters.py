"""Adapters: which numbers of a model a stage may change."""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import (
    ADAPTER,
    Algorithm,
    Choice,
    Decimal,
    Integer,
    Modules,
    Parameter,
)
from kolm_build.core.catalogue.common import DTYPES

LOW_RANK: tuple[Parameter, ...] = (
    Choice(name="adapter_dtype", options=DTYPES, default="fp32", help="how adapters are stored"),
    Integer(name="lora_r", default=16, least=1, help="rank of the adapters"),
    Integer(name="lora_alpha", default=32, least=1, help="they are scaled by alpha over rank"),
    Decimal(name="lora_dropout", default="0", most="0.99", help="share of inputs dropped"),
    Modules(name="target_modules", help="linear layers to adapt"),
)

ROWS: tuple[Algorithm, ...] = (
    Algorithm(
        id="lora",
        axis=ADAPTER,
        family="adapter",
        title="Low-rank adaptation",
        paper="arXiv:2106.09685",
        minimises="trains A and B of W + (alpha / r) B A; W is frozen",
        schema="any",
        parameters=LOW_RANK,
        backing="peft.LoraConfig",
        oracle="peft",
        passes="as the objective's; no gradients of W",
    ),
    Algorithm(
        id="full",
        axis=ADAPTER,
        family="adapter",
        title="Full fine-tuning",
        paper="arXiv:2203.02155",
        minimises="trains every weight, in float32",
        schema="any",
        parameters=(
            Choice(
                name="weights_dtype",
                options=("base", "bf16", "fp16", "fp32"),
                default="base",
                help="what the result is rounded to, once",
            ),
        ),
        backing="kolm_build.steps.adapters.full",
        oracle="trl.SFTTrainer",
        passes="as the objective's",
    ),
)
