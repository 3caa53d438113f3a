"""What libraries register in Python while a build runs, also where they take it back (NUM-97).

What stays registered is found in PyTorch's dispatcher; this notes what does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kolm_build.numerics import certified

_ELSEWHERE = frozenset(
    {"Meta", "CUDA", "HPU", "MPS", "MTIA", "XPU", "PrivateUse1", "Functionalize"}
)
"""Keys of the dispatcher that no computation on the CPU goes through."""


@contextmanager
def noted() -> Iterator[list[str]]:
    """Fill the list with the names of operations that get a kernel inside the block.

    Kernels for other devices are left out, and libraries' own operations that the table names. A
    fallback, which may serve every operation, is called ``fallback for`` and its key.
    """
    names: list[str] = []
    library = torch.library.Library
    impl, fallback = library.impl, library.fallback

    def noting_impl(self: Any, op_name: Any, fn: Any, dispatch_key: str = "", **how: Any) -> Any:
        name = _full_name(self.ns, op_name)
        if _computes(self, dispatch_key) and not _is_named(name):
            names.append(name)
        return impl(self, op_name, fn, dispatch_key, **how)

    def noting_fallback(self: Any, fn: Any, dispatch_key: str = "", **how: Any) -> Any:
        if _computes(self, dispatch_key):
            names.append(f"fallback for {dispatch_key or self.dispatch_key}")
        return fallback(self, fn, dispatch_key, **how)

    library.impl, library.fallback = noting_impl, noting_fallback
    try:
        yield names
    finally:
        library.impl, library.fallback = impl, fallback


def _computes(library: Any, dispatch_key: str) -> bool:
    return (dispatch_key or library.dispatch_key) not in _ELSEWHERE


def _is_named(name: str) -> bool:
    return name in certified.table() and not name.startswith("aten::")


def _full_name(space: str, operator: str | torch._ops.OpOverload) -> str:
    name = operator if isinstance(operator, str) else operator._schema.name  # noqa: SLF001
    if not isinstance(operator, str) and operator._schema.overload_name:  # noqa: SLF001
        name = f"{name}.{operator._schema.overload_name}"  # noqa: SLF001
    return name if "::" in name else f"{space}::{name}"
