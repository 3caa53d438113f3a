"""Functions, rows and the generator of every instruction set, through `libkolm_testing`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.numerics.testing_library import library_path

Floats = NDArray[np.float32]

UNARY = [
    "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "tanh", "erf", "erfc", "sigmoid",
    "log_sigmoid", "silu", "gelu", "gelu_tanh", "rsqrt", "sqrt", "reciprocal", "square", "cube",
    "sin", "cos", "softplus", "mish", "silu_derivative", "gelu_derivative",
    "gelu_tanh_derivative", "softplus_derivative", "log_sigmoid_derivative", "mish_derivative"
]  # fmt: skip
BINARY = [
    "add_scaled", "lerp", "pow", "silu_grad", "sigmoid_grad", "tanh_grad", "gelu_grad",
    "gelu_tanh_grad", "softplus_grad", "log_sigmoid_grad", "mish_grad"
]  # fmt: skip
TERMS = [
    "value", "square", "magnitude", "product", "centred_square", "exp_shifted"
]  # fmt: skip
SCALARS = [
    "decay", "weight_decay", "mean_weight", "beta2", "square_weight", "step_size", "bias2_sqrt",
    "eps"
]  # fmt: skip
FORMATS = {"bf16": (0, 16), "f16": (1, 16), "e4m3": (2, 8), "e5m2": (3, 8), "e2m1": (4, 8)}


class AdamW(ctypes.Structure):
    """The scalars of one step, as maps.h has them."""

    _fields_ = [
        *((name, ctypes.c_float) for name in SCALARS),
        ("maximize", ctypes.c_bool),
        ("decoupled", ctypes.c_bool),
    ]


def _pointer(array: NDArray[Any] | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def _argument(value: Any) -> Any:
    if value is None or isinstance(value, np.ndarray):
        return _pointer(value)
    if isinstance(value, (float, np.floating)):
        return ctypes.c_float(float(value))
    if isinstance(value, (int, np.integer)):
        return ctypes.c_int64(int(value) if int(value) < 1 << 63 else int(value) - (1 << 64))
    return value


class Kernels:
    """One instruction set's kernels; every call copies nothing and returns a new array."""

    def __init__(self, library: ctypes.CDLL, index: int, name: str) -> None:
        self._library, self._index, self.name = library, index, name

    def __repr__(self) -> str:
        return self.name

    def call(self, function: str, *arguments: Any, returns: Any = None) -> Any:
        """Call `kolm_<function>`; integers are 64 bits, floats binary32."""
        entry = getattr(self._library, f"kolm_{function}")
        entry.restype = returns
        return entry(self._index, *(_argument(a) for a in arguments))

    def bound(self, function: str, *arguments: Any) -> Callable[[], Any]:
        """A call of `kolm_<function>` with its arguments converted once: for timing."""
        entry = getattr(self._library, f"kolm_{function}")
        entry.restype = None
        converted = [_argument(a) for a in arguments]
        return lambda: entry(self._index, *converted)

    def unary(self, name: str, x: Floats) -> Floats:
        y = np.empty_like(x)
        self.call("unary", ctypes.c_int(UNARY.index(name)), x.size, x, y)
        return y

    def binary(self, name: str, a: Floats, b: Floats, p: float = 0.0) -> Floats:
        y = np.empty_like(a)
        self.call("binary", ctypes.c_int(BINARY.index(name)), a.size, a, b, y, p)
        return y

    def ternary(self, op: int, a: Floats, b: Floats, c: Floats, p: float) -> Floats:
        y = np.empty_like(a)
        self.call("ternary", ctypes.c_int(op), a.size, a, b, c, y, p)
        return y

    def widen(self, name: str, codes: NDArray[Any]) -> Floats:
        y = np.empty(codes.size, np.float32)
        self.call("widen", ctypes.c_int(FORMATS[name][0]), codes.size, codes, y)
        return y

    def narrow(self, name: str, x: Floats) -> NDArray[Any]:
        number, bits = FORMATS[name]
        y = np.empty(x.size, np.uint16 if bits == 16 else np.uint8)
        self.call("narrow", ctypes.c_int(number), x.size, x, y)
        return y

    def sum(self, name: str, x: Floats, y: Floats | None = None, p: float = 0.0) -> np.float32:
        number = ctypes.c_int(TERMS.index(name))
        return np.float32(self.call("sum", number, x.size, x, y, p, returns=ctypes.c_float))

    def draw(
        self, what: str, seed: int, stream: int, first: int, n: int, *rest: Any
    ) -> NDArray[Any]:
        out = np.empty(n, np.uint32 if what == "words" else np.float32)
        self.call(what, seed, stream, first, n, *rest, out)
        return out


def all_kernels() -> list[Kernels]:
    """The kernels of every instruction set that this machine has, best first."""
    library = ctypes.CDLL(str(library_path()))
    library.kolm_isa.restype = ctypes.c_char_p
    names: list[str] = []
    while (name := library.kolm_isa(len(names))) is not None:
        names.append(name.decode())
    return [Kernels(library, index, name) for index, name in enumerate(names)]


def numbers(seed: int, n: int, scale: float = 1.0) -> Floats:
    """Numbers of both signs, uniform in [-scale, scale)."""
    return (np.random.default_rng(seed).uniform(-scale, scale, n)).astype(np.float32)


def special_values() -> Floats:
    """Zeros, subnormals, infinities, NaN, every exponent: both signs."""
    exponents = np.arange(255, dtype=np.uint32) << 23
    mantissas = np.array([0, 1, 0x2AAAAA, 0x7FFFFF], np.uint32)
    some = (exponents[:, None] | mantissas[None, :]).ravel()
    odd = np.array([0x7F800000, 0x7FC00000, 0x7F800001, 0x7FFFFFFF], np.uint32)
    positive = np.concatenate([some, odd])
    return np.concatenate([positive, positive | 0x80000000]).astype(np.uint32).view(np.float32)


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """True for equal bits, NaN included."""
    return a.tobytes() == b.tobytes()
