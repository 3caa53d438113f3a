"""The adapters there are, by their names in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from kolm_build.core.fields import Fields
from kolm_build.steps.adapters._change import Change
from kolm_build.steps.adapters.full import Full
from kolm_build.steps.adapters.lora import Lora

ADAPTERS: Mapping[str, Callable[[Fields], Change]] = MappingProxyType(
    {
        "full": Full.take,
        "lora": Lora.take,
    }
)
