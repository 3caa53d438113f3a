"""The kernels of every instruction set through ctypes: `libkolm_testing`, built by CMake.

    cmake -S . -B build -G Ninja -DKOLM_TORCH=OFF && cmake --build build --target kolm_testing

The variable `KOLM_TESTING_LIBRARY` names another file than `build/libkolm_testing.so`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
Array = NDArray[Any]
Call = Callable[[], object]
ROOT = Path(__file__).resolve().parents[2]


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "key_heads", "queries")),
        *((name, ctypes.c_int64) for name in ("keys", "width", "value_width")),
        ("scale", ctypes.c_float),
        ("causal", ctypes.c_bool),
    ]


class _Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "head", "row")]


class _Mask(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "head", "row", "column")),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix in memory as the kernels see it; `array` keeps the memory alive.

    Attributes:
        array: The memory, of binary32 or of 16-bit patterns.
        element: FLOAT32, BFLOAT16 or FLOAT16.
        strides: Elements from one row and one column to the next.
    """

    array: Array
    element: int
    strides: tuple[int, int]

    def arguments(self) -> tuple[Any, ...]:
        """What the C functions take for an operand."""
        row, column = (ctypes.c_int64(stride) for stride in self.strides)
        return ctypes.c_void_p(self.array.ctypes.data), self.element, row, column


def matrix(values: Array, *, element: int = FLOAT32) -> Matrix:
    """`values` (binary32, or patterns of 16 bits) where they lie, with their own strides."""
    row, column = (stride // values.itemsize for stride in values.strides)
    return Matrix(array=values, element=element, strides=(row, column))


@dataclass(frozen=True, slots=True)
class Product:
    """Two operands: a of rows x depth, b of depth x columns; `shape` is rows, columns, depth."""

    a: Matrix
    b: Matrix
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOptions:
    """The scale, and what hides keys: an additive mask that broadcasts, the causal one, or both."""

    scale: float
    causal: bool = False
    mask: Array | None = None


def library_path() -> Path:
    """Where the testing library is.

    Raises:
        FileNotFoundError: It has not been built.
    """
    path = Path(os.environ.get("KOLM_TESTING_LIBRARY", ROOT / "build" / "libkolm_testing.so"))
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; build it:{(__doc__ or '').splitlines()[2]}")
    return path


class Library:
    """The testing library; every method's `isa` is a name of `isas()`, best first."""

    def __init__(self, path: Path | None = None) -> None:
        self._lib = ctypes.CDLL(str(path or library_path()))
        self._lib.kolm_isa.restype = ctypes.c_char_p
        self._lib.kolm_packed_floats.restype = ctypes.c_int64
        self._lib.kolm_multiply_adds.restype = ctypes.c_double
        self._index = {name: i for i, name in enumerate(self._names())}

    def _names(self) -> list[str]:
        names: list[str] = []
        while (name := self._lib.kolm_isa(len(names))) is not None:
            names.append(name.decode())
        return names

    def isas(self) -> list[str]:
        """The instruction sets that this machine can run."""
        return list(self._index)

    def has_thrown(self, threads: int, tasks: int, failing: int) -> bool:
        """Whether a job gives back what a task throws, and the next one is done whole."""
        return bool(self._lib.kolm_failing_job(threads, *_longs(tasks, failing)))

    def gemm_reference(self, product: Product) -> Array:
        """NUM-10 word for word in scalar C."""
        out = np.empty(product.shape[:2], np.float32)
        self._lib.kolm_gemm_reference(
            *_longs(*product.shape),
            *product.a.arguments(),
            *product.b.arguments(),
            _data(out),
            *_longs(product.shape[1]),
        )
        return out

    def gemm_call(self, isa: str, threads: int, product: Product, out: Array) -> Call:
        """What makes `out` (binary32, unit column stride) GEMM(a, b); its arguments are ready."""
        return partial(
            self._lib.kolm_gemm,
            self._index[isa],
            threads,
            *_longs(*product.shape),
            *product.a.arguments(),
            *product.b.arguments(),
            _data(out),
            *_longs(out.strides[0] // 4),
        )

    def gemm(self, isa: str, threads: int, product: Product, out: Array) -> Array:
        """`out` becomes GEMM(a, b)."""
        self.gemm_call(isa, threads, product, out)()
        return out

    def pack(self, isa: str, threads: int, product: Product) -> Array:
        """The product's b as `gemm_packed` reads it, aligned to a cache line."""
        _, n, k = product.shape
        count = self._lib.kolm_packed_floats(self._index[isa], *_longs(k, n))
        packed = aligned(count)
        packed[:] = np.nan
        self._lib.kolm_pack(
            self._index[isa], threads, *_longs(k, n), *product.b.arguments(), _data(packed)
        )
        return packed

    def gemm_packed_call(
        self, isa: str, threads: int, product: Product, packed: Array, *, out: Array
    ) -> Call:
        """The same with the b that `pack` packed."""
        return partial(
            self._lib.kolm_gemm_packed,
            self._index[isa],
            threads,
            *_longs(*product.shape),
            *product.a.arguments(),
            _data(packed),
            _data(out),
            *_longs(out.strides[0] // 4),
        )

    def gemm_packed(
        self, isa: str, threads: int, product: Product, packed: Array, *, out: Array
    ) -> Array:
        """`out` becomes GEMM(a, b) for the b that `pack` packed."""
        self.gemm_packed_call(isa, threads, product, packed, out=out)()
        return out

    def multiply_adds(self, isa: str, rounds: int) -> float:
        """Run a loop of nothing but fused multiply-adds; its floating point operations, or 0."""
        sink = ctypes.c_float()
        count = self._lib.kolm_multiply_adds(
            self._index[isa], ctypes.c_int64(rounds), ctypes.byref(sink)
        )
        return float(count)

    def softmax(self, isa: str, x: Array) -> Array:
        """Each row of `x`, contiguous binary32."""
        out = np.empty_like(x)
        for row, to in zip(x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1]), strict=True):
            self._lib.kolm_softmax(self._index[isa], *_longs(row.size), _data(row), _data(to))
        return out

    def softmax_grad(self, isa: str, dy: Array, y: Array) -> Array:
        """Each row of the gradient, contiguous binary32."""
        out = np.empty_like(y)
        width = y.shape[-1]
        rows = (dy.reshape(-1, width), y.reshape(-1, width), out.reshape(-1, width))
        for d, p, to in zip(*rows, strict=True):
            self._lib.kolm_softmax_grad(
                self._index[isa], *_longs(width), _data(d), _data(p), _data(to)
            )
        return out

    def column_sums(self, isa: str, x: Array) -> Array:
        """SUM down the columns of a contiguous matrix."""
        out = np.empty(x.shape[1], np.float32)
        self._lib.kolm_column_sums(
            self._index[isa], *_longs(*x.shape), _data(x), *_longs(x.shape[1]), _data(out)
        )
        return out

    def attention_forward(
        self,
        isa: str,
        threads: int,
        q: Array,
        k: Array,
        v: Array,
        *,
        options: AttentionOptions,
    ) -> Array:
        """Attention over [batch, heads, rows, width] arrays of unit stride along the width."""
        out = np.empty((*q.shape[:3], v.shape[3]), np.float32)
        self._lib.kolm_attention_forward(
            self._index[isa],
            threads,
            *_attention_arguments(q, k, v, options),
            *_strided(out),
        )
        return out

    def attention_backward(
        self,
        isa: str,
        threads: int,
        q: Array,
        k: Array,
        v: Array,
        *,
        dout: Array,
        options: AttentionOptions,
    ) -> tuple[Array, Array, Array]:
        """The gradients of q, k and v."""
        grads = tuple(np.empty(x.shape, np.float32) for x in (q, k, v))
        self._lib.kolm_attention_backward(
            self._index[isa],
            threads,
            *_attention_arguments(q, k, v, options),
            *_strided(dout),
            *(argument for grad in grads for argument in _strided(grad)),
        )
        return grads  # type: ignore[return-value]


def aligned(count: int) -> Array:
    """Memory for `count` binary32 numbers at the start of a cache line."""
    raw = np.empty(count + 16, np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + count]


def _longs(*values: int) -> Sequence[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]


def _data(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _strided(array: Array) -> tuple[Any, Any]:
    if array.size and array.shape[3] > 1 and array.strides[3] != 4:
        raise ValueError(f"the width has stride {array.strides[3] // 4}, expected 1")
    strides = _Strides(*(stride // 4 for stride in array.strides[:3]))
    return _data(array), ctypes.byref(strides)


def _attention_arguments(q: Array, k: Array, v: Array, options: AttentionOptions) -> list[Any]:
    scale, causal, mask = options.scale, options.causal, options.mask
    batch, heads, queries, width = q.shape
    shape = _Shape(batch, heads, k.shape[1], queries, k.shape[2], width, v.shape[3], scale, causal)
    seen = _Mask(None, 0, 0, 0, 0)
    if mask is not None:
        whole = np.broadcast_to(mask, (batch, heads, queries, k.shape[2]))
        seen = _Mask(mask.ctypes.data, *(stride // 4 for stride in whole.strides))
    strided = [argument for array in (q, k, v) for argument in _strided(array)]
    return [ctypes.byref(shape), *strided, ctypes.byref(seen)]
