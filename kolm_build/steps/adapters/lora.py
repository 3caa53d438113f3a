"""``lora``: W + (alpha / r) B A beside each linear layer (arXiv:2106.09685, section 4.1)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.weights import COMPUTE_DTYPES
from kolm_build.steps._adapter import adapter_config
from kolm_build.steps._bounds import choice, count, decimal
from kolm_build.steps._pinned import LORA_PINNED
from kolm_build.steps._tensors import weight_of
from kolm_build.steps._trace import diverged
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps._weights import write_weights
from kolm_build.steps.adapters._change import Change, check_layers

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraParams:
    """What a recipe may say of low-rank adapters.

    Attributes:
        lora_r: Rank of the adapters.
        lora_alpha: They are scaled by `lora_alpha` over `lora_r`.
        lora_dropout: Share of an adapter's inputs that is dropped in training.
        target_modules: Names of the linear layers to adapt; empty for every one of them.
        adapter_dtype: How the adapters are stored; they are trained in float32.
    """

    lora_r: int
    lora_alpha: int
    lora_dropout: float
    target_modules: tuple[str, ...]
    adapter_dtype: str

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The parameters in `fields`; what is left out has the value given here."""
        return cls(
            lora_r=count(fields, "lora_r", 16),
            lora_alpha=count(fields, "lora_alpha", 32),
            lora_dropout=decimal(fields, "lora_dropout", "0", least=0.0, most=0.99),
            target_modules=modules(fields, "target_modules"),
            adapter_dtype=choice(fields, "adapter_dtype", "fp32", DTYPES),
        )


def modules(fields: Fields, name: str) -> tuple[str, ...]:
    """The names of layers under `name`, sorted; empty for every linear layer."""
    names = sorted({part.strip() for part in fields.text(name, default=ALL_LINEAR).split(",")})
    if not all(names):
        raise InvalidRecordError(
            "an empty name", where=name, expected="all-linear or q_proj,v_proj,..."
        )
    return () if names == [ALL_LINEAR] else tuple(names)


class Lora(Change):
    """Low-rank adapters, made by PEFT's `LoraConfig`.

    Args:
        params: The recipe's words.
    """

    def __init__(self, params: LoraParams) -> None:
        self.params = params

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapters that `fields` describe."""
        return cls(LoraParams.take(fields))

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`."""
        check_layers(network, self.params.target_modules)
        return get_peft_model(network, lora_config(self.params))

    def write(self, network: Any, *, base: Path, out: Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json (SFT-8, SFT-9)."""
        params = self.params
        state = adapter_state(network, params.adapter_dtype)
        weights = [weight_of(name, tensor) for name, tensor in state.items()]
        write_weights(out / "adapter_model.safetensors", weights)
        config = adapter_config(rank=params.lora_r, alpha=params.lora_alpha, tensors=state)
        (out / "adapter_config.json").write_bytes(strict_json.dumps(config))

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network without its adapters."""
        return network.disable_adapter()  # type: ignore[no-any-return]  # PEFT's


def lora_config(params: LoraParams) -> LoraConfig:
    """PEFT's settings: the recipe's, and `LORA_PINNED` for the rest."""
    return LoraConfig(
        r=params.lora_r,
        lora_alpha=params.lora_alpha,
        lora_dropout=params.lora_dropout,
        target_modules=list(params.target_modules) or ALL_LINEAR,
        **LORA_PINNED,
    )


def adapter_state(network: Any, dtype: str) -> dict[str, torch.Tensor]:
    """The adapters' tensors in PEFT's names, as `dtype`, all finite.

    PEFT must not ask a hub whether the vocabulary grew.

    Raises:
        StepFailedError: A value is not a finite number.
    """
    found = get_peft_model_state_dict(network, save_embedding_layers=False)
    state = {name: tensor.to(COMPUTE_DTYPES[dtype]) for name, tensor in found.items()}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise diverged(name, actual="NaN or an infinity")
    return state
