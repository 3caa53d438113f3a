"""What a recipe may say of a training, by algorithm: names, bounds, defaults (spec/recipe.md).

Every parameter is written into the derivation, default or not, so a later default changes nothing
that is locked.
"""

from __future__ import annotations

import re

from kolm_build.core.bounded import Params, choice, decimal, integer
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

ALGORITHMS = ("sft",)
ALL_LINEAR = "all-linear"

_DTYPES = ("bf16", "fp32")
_SCHEDULES = ("constant", "cosine", "linear")


def sft_params(fields: Fields) -> Params:
    """The parameters of supervised fine-tuning with LoRA, sorted, each with its value."""
    return (
        ("adapter_dtype", choice(fields, "adapter_dtype", _DTYPES, default="fp32")),
        ("batch_size", integer(fields, "batch_size", least=1, default=8)),
        ("compute_dtype", choice(fields, "compute_dtype", _DTYPES, default="bf16")),
        ("epochs", integer(fields, "epochs", least=1, default=1)),
        ("gradient_accumulation", integer(fields, "gradient_accumulation", least=1, default=1)),
        ("learning_rate", decimal(fields, "learning_rate", most="1", default="2e-4")),
        ("lora_alpha", integer(fields, "lora_alpha", least=1, default=32)),
        ("lora_dropout", decimal(fields, "lora_dropout", most="0.99", default="0")),
        ("lora_r", integer(fields, "lora_r", least=1, default=16)),
        ("max_grad_norm", decimal(fields, "max_grad_norm", most="1000000", default="1")),
        ("max_length", integer(fields, "max_length", least=1, default=1024)),
        ("max_steps", integer(fields, "max_steps", least=0, default=0)),
        ("schedule", choice(fields, "schedule", _SCHEDULES, default="linear")),
        ("target_modules", _modules(fields, "target_modules")),
        ("warmup_steps", integer(fields, "warmup_steps", least=0, default=0)),
        ("weight_decay", decimal(fields, "weight_decay", most="1", default="0")),
    )


def _modules(fields: Fields, name: str) -> str:
    """Names of linear layers, sorted, so that their order is not a difference."""
    names = sorted({part.strip() for part in fields.text(name, default=ALL_LINEAR).split(",")})
    if names != [ALL_LINEAR] and not all(re.fullmatch(r"[A-Za-z0-9_.]+", part) for part in names):
        raise InvalidRecordError(
            "not names of layers", where=name, expected=f"{ALL_LINEAR}, or such as q_proj,v_proj"
        )
    return ",".join(names)
