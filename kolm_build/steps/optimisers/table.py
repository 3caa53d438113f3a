"""The optimisers there are, by their names in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from kolm_build.core.fields import Fields
from kolm_build.steps.optimisers._optimiser import Optimiser
from kolm_build.steps.optimisers.adamw import AdamW
from kolm_build.steps.optimisers.badam import BAdam
from kolm_build.steps.optimisers.ema import Ema
from kolm_build.steps.optimisers.galore import GaLore
from kolm_build.steps.optimisers.lisa import Lisa
from kolm_build.steps.optimisers.lora_plus import LoraPlus
from kolm_build.steps.optimisers.sgd import Sgd

OPTIMISERS: Mapping[str, Callable[[Fields], Optimiser]] = MappingProxyType(
    {
        "adamw": AdamW.take,
        "badam": BAdam.take,
        "ema": Ema.take,
        "galore": GaLore.take,
        "lisa": Lisa.take,
        "lora-plus": LoraPlus.take,
        "sgd": Sgd.take,
    }
)
