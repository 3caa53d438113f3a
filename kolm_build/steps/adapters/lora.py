"""``lora``: W + (alpha / r) B A beside each linear layer (arXiv:2106.09685, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from peft import LoraConfig, get_peft_model

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._adapter import adapter_config
from kolm_build.steps._base import PLAIN
from kolm_build.steps._bounds import choice, count, decimal
from kolm_build.steps._pinned import LORA_INERT, LORA_PINNED
from kolm_build.steps._settings import settings_of
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps.adapters._change import Change, check_layers
from kolm_build.steps.adapters._files import adapter_state, write_adapter

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


def modules(fields: Fields, name: str, default: str = ALL_LINEAR) -> tuple[str, ...]:
    """The names of layers under `name`, sorted; empty for every linear layer."""
    names = sorted({part.strip() for part in fields.text(name, default=default).split(",")})
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

    flags: Mapping[str, bool] = MappingProxyType({})
    """Settings of PEFT that differ from what is pinned."""

    stored = PLAIN
    """How the base's adapted layers are stored, for base.json."""

    def __init__(self, params: LoraParams) -> None:
        self.params = params

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapters that `fields` describe."""
        return cls(LoraParams.take(fields))

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`."""
        check_layers(network, self.params.target_modules)
        return get_peft_model(network, lora_config(self.params, self.flags))

    def write(self, network: Any, *, base: Path, out: Path) -> None:
        """Write the adapters, their configuration and the base's digest (SFT-8, SFT-9, ADPT-1)."""
        state = self.finished(adapter_state(network, self.params.adapter_dtype))
        config = adapter_config(
            rank=len(next(one for name, one in state.items() if name.endswith("lora_A.weight"))),
            alpha=self.alpha(),
            tensors=state,
            use_dora=self.flags.get("use_dora", False),
            use_rslora=self.flags.get("use_rslora", False),
        )
        write_adapter(state, config, base=base, out=out, stored=self.stored)

    def alpha(self) -> int:
        """The alpha to write."""
        return self.params.lora_alpha

    def finished(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors to write, of those that PEFT would."""
        return state

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network without its adapters."""
        return network.disable_adapter()


def lora_config(params: LoraParams, flags: Mapping[str, bool] = MappingProxyType({})) -> LoraConfig:
    """PEFT's settings: the recipe's, and `LORA_PINNED` with `flags` for the rest."""
    given = {
        "r": params.lora_r,
        "lora_alpha": params.lora_alpha,
        "lora_dropout": params.lora_dropout,
        "target_modules": list(params.target_modules) or ALL_LINEAR,
    }
    return LoraConfig(**settings_of(LoraConfig, {**given, **LORA_PINNED, **flags}, LORA_INERT))
