"""Mixtures of adapters: several beside each layer, and a router."""

from __future__ import annotations

from kolm_build.core.catalogue.adapters import LOW_RANK, STORED
from kolm_build.core.catalogue.algorithm import (
    ADAPTER,
    Algorithm,
    Decimal,
    Integer,
    Parameter,
    Role,
)

_SHARED: tuple[Parameter, ...] = (
    Decimal(
        name="balance_weight", default="0.01", most="1000", help="factor of the load-balance loss"
    ),
    Integer(name="experts", default=4, least=1, help="adapters beside each layer"),
    Decimal(name="z_weight", default="0.001", most="1000", help="factor of the router's z-loss"),
    *(one for one in LOW_RANK if one.name != "lora_dropout"),
)

ROWS: tuple[Algorithm, ...] = (
    Algorithm(
        id="moe-lora",
        axis=ADAPTER,
        family="mixture",
        title="Mixture of low-rank adapters, the likeliest speak",
        paper="arXiv:2404.15159, equations 3 to 5",
        minimises="W + sum over the top k of p_i (alpha / r) B_i A_i; adds load-balance and z-loss",
        schema="any",
        parameters=(
            *_SHARED,
            Integer(name="top_k", default=2, least=1, help="experts that speak of a token"),
        ),
        backing="kolm_build.steps.adapters.moe_lora",
        oracle="NumPy",
        passes="as the objective's; all experts are computed",
        mergeable=False,
        attachable=True,
    ),
    Algorithm(
        id="lora-moe",
        axis=ADAPTER,
        family="mixture",
        title="Mixture of low-rank adapters, all speak",
        paper="arXiv:2312.09979, equation 4",
        minimises="W + sum of p_i (alpha / r) B_i A_i; adds load-balance and z-loss",
        schema="any",
        parameters=_SHARED,
        backing="kolm_build.steps.adapters.lora_moe",
        oracle="NumPy",
        passes="as the objective's; all experts are computed",
        mergeable=False,
        attachable=True,
    ),
    Algorithm(
        id="x-lora",
        axis=ADAPTER,
        family="mixture",
        title="Mixture of adapters that were trained before",
        paper="arXiv:2402.07148",
        minimises="trains the gates of W + sum of p_i s_i B_i A_i; W, A_i and B_i are frozen",
        schema="any",
        parameters=(
            STORED,
            Integer(name="top_k", default=0, help="adapters that speak of a token; 0 for all"),
            Integer(name="xlora_depth", default=1, least=1, help="layers of the gating network"),
            Integer(
                name="xlora_size", default=64, least=1, help="width of its layers but the last"
            ),
        ),
        roles=(
            Role(
                name="adapters",
                kind="adapters",
                help="earlier stages from the same model, whose LoRA adapters are mixed",
            ),
        ),
        backing="kolm_build.steps.adapters.x_lora",
        oracle="peft.XLoraConfig",
        passes="as the objective's, and one forward before; no gradients of W, A_i and B_i",
        mergeable=False,
        attachable=True,
    ),
)
