"""What a refused operation was, and which module of the model called it (spec/numerics.md, NUM-94).

Nothing is recorded while a build runs: the frames that the error passed through tell.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from types import FrameType, TracebackType
from typing import Self

from torch import nn

from kolm_build.errors import UncertifiedOperatorError

_GUARD = re.compile(r"kolm refuses \{(.*?)\} \{(.*?)\} \{(.*?)\} \{(.*)\}", re.DOTALL)
_KERNEL = re.compile(r"kolm portable-1: (aten::\S+) (is not certified.*)", re.DOTALL)
DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
"""PyTorch's names of types in Python, by those in C++."""

_DTYPE = re.compile(rf"\b({'|'.join(DTYPES)})(?=\[)")
_FRAMEWORK = ("torch", "contextlib", "functools")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the guard or a portable kernel says of a call it refused.

    Attributes:
        operator: The operation, such as ``aten::cumsum``.
        reason: Why it was refused.
        node: The autograd node that ran; empty in a forward pass.
        arguments: Dtypes and shapes, or ``""`` where the reason names them.
    """

    operator: str
    reason: str
    node: str
    arguments: str

    @classmethod
    def parse(cls, message: str) -> Self | None:
        """The refusal that `message`, an error's text, tells of; None if it tells of none."""
        if found := _GUARD.search(message):
            operator, reason, node, arguments = found.groups()
            arguments = _DTYPE.sub(lambda one: DTYPES[one[1]], arguments)
            return cls(operator=operator, reason=reason, node=node, arguments=arguments)
        if found := _KERNEL.search(message):
            operator, reason = found.groups()
            return cls(operator=operator, reason=reason.strip(), node="", arguments="")
        return None

    def to_error(self, traceback: TracebackType | None) -> UncertifiedOperatorError:
        """The error for a user; `traceback` is where the refusal came from."""
        frames = list(_frames(traceback))
        module = _module_of(frames)
        if self.node:
            module = f"the gradient of {self.node}" + (f" below {module}" if module else "")
        line = _line_of(frames)
        return UncertifiedOperatorError(
            f"{self.operator} is refused: {self.reason}",
            where=", ".join(part for part in (module, line) if part) or None,
            expected="an operation of `kolm numerics list`",
            actual=f"{self.operator}({self.arguments})" if self.arguments else self.operator,
            advice="Compute it from certified operations, or set class = 'native-1' under"
            " [numerics]; `kolm numerics check` shows all that a model uses.",
        )


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _module_of(frames: list[tuple[FrameType, int]]) -> str:
    """``model.layers.3.mlp.act_fn (SiLU)``: the innermost module, by its path in the outermost."""
    modules = [
        own for frame, _ in frames if isinstance(own := frame.f_locals.get("self"), nn.Module)
    ]
    if not modules:
        return ""
    outermost, innermost = modules[0], modules[-1]
    paths = {id(module): path for path, module in outermost.named_modules()}
    path = paths.get(id(innermost), "")
    kind = type(innermost).__name__
    return f"{path} ({kind})" if path else kind


def _line_of(frames: list[tuple[FrameType, int]]) -> str:
    """``transformers/activations.py:90: return …``: the innermost line that is no framework's."""
    for frame, number in reversed(frames):
        name = frame.f_globals.get("__name__", "")
        if name.split(".")[0] in _FRAMEWORK:
            continue
        code = linecache.getline(frame.f_code.co_filename, number).strip()
        place = f"{_file_of(name, frame.f_code.co_filename)}:{number}"
        return f"{place}: {code}" if code else place
    return ""


def _file_of(module: str, file: str) -> str:
    """The file's path from its package's folder: the same wherever it is installed."""
    depth = module.count(".") + (file.endswith("__init__.py") if "." in module else 0)
    return PurePath(*PurePath(file).parts[-depth - 1 :]).as_posix()
