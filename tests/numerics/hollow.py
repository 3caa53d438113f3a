"""Tensors that show their shape and hide their data, and arguments for operations from a schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from kolm_build.numerics.state import payload


class Hollow(torch.Tensor):
    """Has no memory of its own: only an operation that is dispatched reaches the numbers."""

    @staticmethod
    def __new__(cls, filled):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            filled.size(),
            strides=filled.stride(),
            storage_offset=filled.storage_offset(),
            dtype=filled.dtype,
            requires_grad=filled.requires_grad,
        )
        made.filled = filled.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = tree_map(filled, (args, kwargs or {}))
        result = tree_map(hollow, func(*plain[0], **plain[1]))
        return return_and_correct_aliasing(func, args, kwargs or {}, result)


def filled(value):
    """The tensor that a hollow one hides; anything else as it is."""
    return value.filled if isinstance(value, Hollow) else value


def hollow(value):
    """A tensor hidden; anything else as it is."""
    return Hollow(value) if type(value) is torch.Tensor else value


@dataclass(frozen=True)
class World:
    """What the arguments of a call are made of."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    whole: int
    out: torch.dtype

    def tensor(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.rand(self.shape, generator=generator) * 3
        return numbers.to(self.dtype)

    def value(self, argument) -> object:
        """A value of the argument's type; None where this world has none."""
        kind, name = str(argument.type), argument.name
        if argument.is_out:
            return torch.empty(0, dtype=self.out)
        if kind == "Tensor":
            return self.tensor(len(name))
        if kind == "List[Tensor]":
            return [self.tensor(1), self.tensor(2)]
        if kind in ("int", "number"):
            return self.whole
        if kind.startswith("List[int"):
            return [self.whole] * (len(self.shape) if name in ("size", "sizes") else 1)
        return {"float": 0.5, "bool": True}.get(kind, SPECIAL.get((name, kind)))

    def call(self, operator) -> tuple[list[object], dict[str, object]]:
        """Arguments for every parameter that needs one."""
        positional, named = [], {}
        for argument in operator._schema.arguments:
            if argument.has_default_value() and not argument.is_out:
                continue
            if argument.kwarg_only:
                named[argument.name] = self.value(argument)
            else:
                positional.append(self.value(argument))
        return positional, named


SPECIAL = {
    ("equation", "str"): "ij,jk->ik",
    ("indexing", "str"): "ij",
    ("rounding_mode", "Optional[str]"): None,
    ("ord", "str"): "fro",  # codespell:ignore fro
    ("mode", "str"): "constant",
    ("generator", "Optional[Generator]"): None,
    ("device", "Device"): torch.device("cpu"),
    ("dtype", "int"): torch.float64,
}


def worlds() -> Iterator[World]:
    """What to try, in this order."""
    for shape in ((4, 4), (4,), (2, 4, 4), (1, 1, 4, 4), ()):
        for dtype in (torch.float32, torch.int64, torch.bool):
            for whole in (1, 0, 2):
                for out in dict.fromkeys((dtype, torch.bool, torch.int64)):
                    yield World(shape, dtype, whole, out)


def copied(arguments):
    """The same arguments in memory of their own."""
    return tree_map(lambda one: one.clone() if isinstance(one, torch.Tensor) else one, arguments)


def run(operator, arguments, *, hide: bool):
    """The result of a call, of hidden operands or of plain ones."""
    torch.manual_seed(0)
    positional, named = copied(arguments)
    if hide:
        positional, named = tree_map(hollow, (positional, named))
    return tree_map(filled, operator(*positional, **named))


def sized(operator, arguments):
    """The arguments with outputs that have the result's shape: a hidden tensor is not resized."""
    names = [one.name for one in operator._schema.arguments if one.is_out]
    if not names:
        return arguments
    positional, named = copied(arguments)
    operator(*positional, **named)
    return arguments[0], {**arguments[1], **{name: named[name] for name in names}}


def equal(one, other) -> bool:
    """Whether two results are the same bits."""
    ones, others = tree_leaves(one), tree_leaves(other)
    return len(ones) == len(others) and all(map(_equal, ones, others))


def _equal(one, other) -> bool:
    if not isinstance(one, torch.Tensor):
        return one == other
    return one.dtype == other.dtype and payload(one) == payload(other)
