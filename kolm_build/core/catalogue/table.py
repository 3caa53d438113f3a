"""The catalogue: every algorithm there is, by its name in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kolm_build.core.catalogue import (
    adapters,
    distillation,
    federated,
    merging,
    mixture,
    optimisers,
    preference,
    reinforcement,
    reward,
    supervised,
)
from kolm_build.core.catalogue.algorithm import ADAPTER, AXES, OBJECTIVE, OPTIMISER, Algorithm

_ROWS: tuple[Algorithm, ...] = (
    *supervised.ROWS,
    *preference.ROWS,
    *reward.ROWS,
    *reinforcement.ROWS,
    *distillation.ROWS,
    *merging.ROWS,
    *federated.ROWS,
    *adapters.ROWS,
    *mixture.ROWS,
    *optimisers.ROWS,
)


def _on(axis: str) -> Mapping[str, Algorithm]:
    return MappingProxyType({row.id: row for row in _ROWS if row.axis == axis})


ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType({row.id: row for row in _ROWS})
OBJECTIVES, ADAPTERS, OPTIMISERS = _on(OBJECTIVE), _on(ADAPTER), _on(OPTIMISER)
assert len(ALGORITHMS) == len(_ROWS), "a name is there twice"
assert all(row.axis in AXES for row in _ROWS)
