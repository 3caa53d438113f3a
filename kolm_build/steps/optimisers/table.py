"""The optimisers there are, by their names in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from kolm_build.core.fields import Fields
from kolm_build.steps.optimisers._optimiser import Optimiser
from kolm_build.steps.optimisers.adamw import AdamW

OPTIMISERS: Mapping[str, Callable[[Fields], Optimiser]] = MappingProxyType({"adamw": AdamW.take})
