"""Every setting of PEFT's other configurations that a recipe does not set (ADPT-4).

As `_pinned` does for LoraConfig: a field that an upgrade brings fails a test until it stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kolm_build.steps._pinned import LORA_INERT, LORA_PINNED


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What becomes of the fields of one of PEFT's configurations.

    Attributes:
        recipe: Fields that follow from the recipe or the model.
        fixed: Fields and their values.
        inert: Fields that cannot change a result, each with the reason.
    """

    recipe: frozenset[str]
    fixed: Mapping[str, object]
    inert: Mapping[str, str]


_WRITES_ITS_OWN = "the step writes its own adapter_config.json"
_TUNER_INERT: Mapping[str, str] = {
    "auto_mapping": _WRITES_ITS_OWN,
    "base_model_name_or_path": _WRITES_ITS_OWN,
    "peft_type": "the class sets it",
    "peft_version": _WRITES_ITS_OWN,
    "revision": _WRITES_ITS_OWN,
}
_TUNER: Mapping[str, object] = {
    "task_type": "CAUSAL_LM",
    "inference_mode": False,
    "modules_to_save": None,
}
_EVERY_LAYER: Mapping[str, object] = {"layers_pattern": None, "layers_to_transform": None}

VERA = Pinned(
    recipe=frozenset({"d_initial", "projection_prng_key", "r", "target_modules", "vera_dropout"}),
    fixed={
        **_TUNER,
        **_EVERY_LAYER,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_weights": True,
        "save_projection": True,
    },
    inert=_TUNER_INERT,
)

IA3 = Pinned(
    recipe=frozenset({"feedforward_modules", "target_modules"}),
    fixed={
        **_TUNER,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "init_ia3_weights": True,
    },
    inert=_TUNER_INERT,
)

OFT = Pinned(
    recipe=frozenset({"oft_block_size", "target_modules"}),
    fixed={
        **_TUNER,
        **_EVERY_LAYER,
        "bias": "none",
        "block_share": False,
        "coft": False,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "init_weights": True,
        "module_dropout": 0.0,
        "r": 0,
        "use_cayley_neumann": False,
    },
    inert={
        **_TUNER_INERT,
        "eps": "it is the radius of coft, which is off",
        "num_cayley_neumann_terms": "use_cayley_neumann is off",
    },
)

_PRODUCT: Mapping[str, object] = {
    **_TUNER,
    **_EVERY_LAYER,
    "alpha_pattern": {},
    "exclude_modules": None,
    "init_weights": True,
    "module_dropout": 0.0,
    "rank_dropout": 0.0,
    "rank_pattern": {},
    "use_effective_conv2d": False,
}

LOHA = Pinned(
    recipe=frozenset({"alpha", "r", "target_modules"}), fixed=_PRODUCT, inert=_TUNER_INERT
)

LOKR = Pinned(
    recipe=frozenset({"alpha", "r", "target_modules"}),
    fixed={
        **_PRODUCT,
        "decompose_both": False,
        "decompose_factor": -1,
        "rank_dropout_scale": False,
    },
    inert=_TUNER_INERT,
)

HRA = Pinned(
    recipe=frozenset({"r", "target_modules"}),
    fixed={
        **_TUNER,
        **_EVERY_LAYER,
        "apply_GS": False,
        "bias": "none",
        "exclude_modules": None,
        "init_weights": True,
    },
    inert=_TUNER_INERT,
)

_SVD_LORA = ("lora_alpha", "lora_dropout", "target_modules")
_ALLOCATED_HERE = "the step allocates ranks itself (ADPT-40)"

ADALORA = Pinned(
    recipe=frozenset({*_SVD_LORA, "init_r", "target_r", "total_step"}),
    fixed={**LORA_PINNED, "rank_pattern": None},
    inert={
        **LORA_INERT,
        "beta1": _ALLOCATED_HERE,
        "beta2": _ALLOCATED_HERE,
        "deltaT": _ALLOCATED_HERE,
        "orth_reg_weight": "the step adds the penalty itself (ADPT-41)",
        "r": "init_r is the rank",
        "tfinal": _ALLOCATED_HERE,
        "tinit": _ALLOCATED_HERE,
    },
)

_FROM_MODEL = frozenset(
    {"num_attention_heads", "num_layers", "num_transformer_submodules", "token_dim"}
)

PREFIX = Pinned(
    recipe=_FROM_MODEL | {"num_virtual_tokens"},
    fixed={**_TUNER, "init_weights": None, "prefix_projection": False},
    inert={**_TUNER_INERT, "encoder_hidden_size": "prefix_projection is off"},
)

PROMPT = Pinned(
    recipe=_FROM_MODEL | {"num_virtual_tokens"},
    fixed={**_TUNER, "prompt_tuning_init": "RANDOM"},
    inert={
        **_TUNER_INERT,
        "prompt_tuning_init_text": "the first vectors are random",
        "tokenizer_kwargs": "the first vectors are random",
        "tokenizer_name_or_path": "the first vectors are random",
    },
)

PINNED: Mapping[str, Pinned] = {
    "AdaLoraConfig": ADALORA,
    "HRAConfig": HRA,
    "IA3Config": IA3,
    "LoHaConfig": LOHA,
    "LoKrConfig": LOKR,
    "OFTConfig": OFT,
    "PrefixTuningConfig": PREFIX,
    "PromptTuningConfig": PROMPT,
    "VeraConfig": VERA,
}
