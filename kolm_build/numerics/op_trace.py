"""A log of every ATen operation with digests of what it made (spec/bisect.md)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from blake3 import blake3
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kolm_build.core.bisect import Operation, Origin, Tensor
from kolm_build.numerics.state import DTYPE_NAMES, payload

_TORCH = os.path.dirname(torch.__file__) + os.sep  # noqa: PTH120 -- compared with frames' text
_SKIPPED = (_TORCH, __file__, "<")
_INSTALLED = f"site-packages{os.sep}"


class OpTrace(TorchDispatchMode):
    """While it is entered, every operation is logged, those of the backward pass too.

    Args:
        network: The network whose modules are named.
        watch: Number of the operation whose tensors and origin are kept; None for none.
    """

    def __init__(self, network: torch.nn.Module, *, watch: int | None = None) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.tensors: tuple[Tensor, ...] = ()
        self.origin: Origin | None = None
        self._watch = watch
        self._origins: dict[int, Origin] = {}
        self._modules = _ModuleStack(network)

    def __enter__(self) -> Self:
        self._modules.__enter__()
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._modules.__exit__()

    def __torch_dispatch__(
        self,
        func: Any,
        _types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func` and log it."""
        if func.namespace == "profiler":  # marks that torch makes for its own profiler
            return func(*args, **(kwargs or {}))
        origin = None if self._watch is None else self._origin()
        result = func(*args, **(kwargs or {}))
        named = list(_results(func, args, kwargs or {}, result))
        if len(self.operations) == self._watch:
            self.tensors = tuple(_tensor(role, one) for role, one in named)
            self.origin = origin
        outputs = tuple(blake3(payload(one)).hexdigest() for _, one in named)
        self.operations.append(Operation(name=str(func), outputs=outputs))
        return result

    def _origin(self) -> Origin:
        """What calls the operation: of a gradient's, what called the forward operation."""
        node = torch._C._current_autograd_node()  # noqa: SLF001 -- there is no public way
        if node is not None:
            known = self._origins.get(node._sequence_nr())  # noqa: SLF001
            return Origin(
                module=known.module if known else "",
                line=known.line if known else "",
                backward=node.name(),
            )
        origin = Origin(module=self._modules.innermost, line=_line(), backward=None)
        # An operation that needs a gradient has just taken the number before this one.
        number = torch.autograd._get_sequence_nr() - 1  # noqa: SLF001
        self._origins.setdefault(number, origin)
        return origin


class _ModuleStack:
    """Which modules of a network are running."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._names = {id(module): name for name, module in network.named_modules()}
        self._running: list[str] = []
        self._hooks: list[Any] = []

    @property
    def innermost(self) -> str:
        """Path of the innermost module; empty outside of any."""
        return self._running[-1] if self._running else ""

    def __enter__(self) -> None:
        hooks = torch.nn.modules.module
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]

    def __exit__(self, *_error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: torch.nn.Module, _args: object) -> None:
        self._running.append(self._names.get(id(module), type(module).__name__))

    def _leave(self, _module: torch.nn.Module, _args: object, _result: object) -> None:
        self._running.pop()


def _results(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    """What `func` made or changed, each with its role; nothing for a view or for fresh memory."""
    if func.is_view or "empty" in func.name():
        return
    made = [one for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
    yield from ((f"output {index}", one) for index, one in enumerate(made))
    known = {id(one) for one in made}
    for name, value in _changed(func, args, kwargs):
        if id(value) not in known:
            yield name, value


def _changed(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The arguments that `func` writes to, by name."""
    for index, argument in enumerate(func._schema.arguments):  # noqa: SLF001
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        if isinstance(value, torch.Tensor):
            yield argument.name, value
        elif isinstance(value, list | tuple):
            yield from ((f"{argument.name}[{place}]", one) for place, one in enumerate(value))


def _tensor(role: str, tensor: torch.Tensor) -> Tensor:
    return Tensor(
        role=role,
        dtype=DTYPE_NAMES[tensor.dtype],
        shape=tuple(tensor.shape),
        data=bytes(payload(tensor)),
    )


def _line() -> str:
    """The innermost line of Python outside of torch, without the place of the installation."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 -- documented, for such uses
    while frame is not None and frame.f_code.co_filename.startswith(_SKIPPED):
        frame = frame.f_back
    if frame is None:
        return ""
    file = frame.f_code.co_filename
    short = file.rpartition(_INSTALLED)[2] if _INSTALLED in file else _shortened(file)
    return f"{short}:{frame.f_lineno} in {frame.f_code.co_qualname}"


def _shortened(file: str) -> str:
    """`file` from its package on."""
    _, inside, rest = file.rpartition(f"{os.sep}kolm_build{os.sep}")
    return f"kolm_build{os.sep}{rest}" if inside else Path(file).name
