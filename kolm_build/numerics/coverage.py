"""Which operations a model used, and how the table certifies each (`kolm numerics check`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules import module as hooks

from kolm_build.numerics import certified, portable
from kolm_build.numerics.operations import How
from kolm_build.numerics.refusal import DTYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One operation in one place.

    Attributes:
        operator: Such as ``aten::mm``.
        how: What the table says of it, or ``uncertified``.
        place: The module by its path and class, or the autograd node of a backward pass; empty
            outside of both.
        dtypes: Of its tensors.
        calls: How often.
    """

    operator: str
    how: How | Literal["uncertified"]
    place: str
    dtypes: tuple[str, ...]
    calls: int


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Use]]:
    """Fill the list, when the block ends, with what the block used; portable kernels compute.

    What is not certified runs, too: this looks, the guard refuses.
    """
    found: list[Use] = []
    portable.activate()
    torch.ops.kolm_guard.start_watching()
    try:
        with _labelled(model):
            yield found
    finally:
        lines = torch.ops.kolm_guard.stop_watching()
        portable.deactivate()
        found += [_use(line) for line in lines]


@contextmanager
def _labelled(model: nn.Module) -> Iterator[None]:
    """Tell the watch which module runs."""
    names = {id(module): name for name, module in model.named_modules()}
    inside: list[str] = []

    def label(name: str) -> None:
        torch.ops.kolm_guard.label(name)

    def enter(module: nn.Module, _arguments: Any) -> None:
        kind, name = type(module).__name__, names.get(id(module), "")
        inside.append(f"{name} ({kind})" if name else kind)
        label(inside[-1])

    def leave(_module: nn.Module, _arguments: Any, _result: Any) -> None:
        inside.pop()
        label(inside[-1] if inside else "")

    handles = (
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    )
    try:
        label("")
        yield
    finally:
        label("")
        for handle in handles:
            handle.remove()


def _use(line: str) -> Use:
    operator, place, dtypes, calls = line.split("\t")
    known = certified.table().get(operator)
    return Use(
        operator=operator,
        how=known.how if known else "uncertified",
        place=place,
        dtypes=tuple(DTYPES.get(one, one) for one in dtypes.split()),
        calls=int(calls),
    )


def uncertified(uses: Sequence[Use]) -> list[Use]:
    """What the guard would refuse."""
    return [use for use in uses if use.how == "uncertified"]
