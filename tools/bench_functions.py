"""Time the portable functions, rows and draws against stock torch: ratios, one thread, one run.

Pairs of calls are interleaved and timed in processor time; a ratio is the median of the pairs'.
Needs the testing library (make sure it is built): see tests/numerics/testing_library.py.
"""

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as nn

from tests.numerics.kernels import BINARY, UNARY, AdamW, Kernels, all_kernels

PAIRS = 31
ELEMENTS = 16384
ROWS, WIDTH = 32, 768

STOCK = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "log2": torch.log2,
    "log10": torch.log10,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": nn.logsigmoid,
    "silu": nn.silu,
    "gelu": nn.gelu,
    "gelu_tanh": lambda x: nn.gelu(x, approximate="tanh"),
    "rsqrt": torch.rsqrt,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "sin": torch.sin,
    "cos": torch.cos,
    "softplus": nn.softplus,
    "mish": nn.mish,
}


def _time(call: Callable[[], object], repeats: int) -> float:
    start = time.process_time_ns()
    for _ in range(repeats):
        call()
    return (time.process_time_ns() - start) / repeats


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """Print the median time of both and the median ratio."""
    ours(), theirs()
    repeats = max(1, int(1e6 / max(_time(theirs, 3), 1e3)))
    pairs = [(_time(ours, repeats), _time(theirs, repeats)) for _ in range(PAIRS)]
    ratio = statistics.median(a / b for a, b in pairs)
    a, b = (statistics.median(side) / 1000 for side in zip(*pairs, strict=True))
    print(f"{name:24} {a:10.1f} us {b:10.1f} us {ratio:6.2f}", flush=True)


def functions(kernels: Kernels) -> None:
    """Every function that stock torch has, in place of the Python call's cost a large array."""
    x = np.random.default_rng(1).uniform(-6, 6, ELEMENTS).astype(np.float32)
    positive = np.abs(x) + np.float32(1e-3)
    for name, stock in STOCK.items():
        source = positive if name in {"log", "log1p", "log2", "log10", "rsqrt", "sqrt"} else x
        tensor, y = torch.from_numpy(source), np.empty_like(source)
        number = ctypes.c_int(UNARY.index(name))
        call = kernels.bound("unary", number, source.size, source, y)
        compare(name, call, partial(stock, tensor))


def gradients(kernels: Kernels) -> None:
    """The gradients that training uses most."""
    x = np.random.default_rng(2).uniform(-6, 6, ELEMENTS).astype(np.float32)
    y, tensor = np.empty_like(x), torch.from_numpy(x)
    for name, stock in (
        ("silu_grad", lambda: torch.ops.aten.silu_backward(tensor, tensor)),
        ("gelu_grad", lambda: torch.ops.aten.gelu_backward(tensor, tensor)),
    ):
        number = ctypes.c_int(BINARY.index(name))
        compare(name, kernels.bound("binary", number, x.size, x, x, y, 0.0), stock)


def rows(kernels: Kernels) -> None:
    """Row operations on 32 rows of 768; the portable side pays 32 Python calls, one a row."""
    x = np.random.default_rng(3).normal(size=(ROWS, WIDTH)).astype(np.float32)
    y, tensor = np.empty_like(x), torch.from_numpy(x)
    moments = np.empty(2, np.float32)
    gain = np.ones(WIDTH, np.float32)
    weight = torch.from_numpy(gain)

    def each(call: Callable[[int], Callable[[], object]]) -> Callable[[], object]:
        calls = [call(r) for r in range(ROWS)]
        return lambda: [c() for c in calls]

    def norm(r: int) -> Callable[[], object]:
        return kernels.bound("layer_norm", WIDTH, x[r], gain, gain, 1e-5, y[r], moments)

    compare("softmax 32x768", each(lambda r: kernels.bound("softmax", WIDTH, x[r], y[r])),
            lambda: torch.softmax(tensor, 1))  # fmt: skip
    compare("log_softmax 32x768", each(lambda r: kernels.bound("log_softmax", WIDTH, x[r], y[r])),
            lambda: torch.log_softmax(tensor, 1))  # fmt: skip
    compare("layer_norm 32x768", each(norm),
            lambda: nn.layer_norm(tensor, (WIDTH,), weight, weight))  # fmt: skip
    long = np.random.default_rng(4).normal(size=50257).astype(np.float32)
    out, long_tensor = np.empty_like(long), torch.from_numpy(long)
    compare("softmax 50257", kernels.bound("softmax", long.size, long, out),
            lambda: torch.softmax(long_tensor, 0))  # fmt: skip
    compare("sum 50257", kernels.bound("sum", ctypes.c_int(0), long.size, long, None, 0.0),
            lambda: torch.sum(long_tensor))  # fmt: skip
    columns = np.empty(WIDTH, np.float32)
    tall = np.random.default_rng(5).normal(size=(512, WIDTH)).astype(np.float32)
    tall_tensor = torch.from_numpy(tall)
    compare("column sums 512x768", kernels.bound("column_sums", 512, WIDTH, tall, WIDTH, columns),
            lambda: torch.sum(tall_tensor, 0))  # fmt: skip


def draws(kernels: Kernels) -> None:
    """Normal and uniform numbers against torch's generator."""
    out = np.empty(ELEMENTS, np.float32)
    tensor = torch.empty(ELEMENTS)
    compare("normal", kernels.bound("normal", 1, 2, 0, out.size, 0.0, 1.0, out), tensor.normal_)
    compare("uniform", kernels.bound("uniform", 1, 2, 0, out.size, 0.0, 1.0, out), tensor.uniform_)


def adamw(kernels: Kernels) -> None:
    """One step against the fused kernel of stock torch."""
    arrays = [np.full(ELEMENTS, 0.5, np.float32) for _ in range(4)]
    scalars = AdamW(
        0.99999, 0.01, 0.1, 0.999, 0.001, 3e-4, 0.03, 1e-8, maximize=False, decoupled=True
    )
    call = kernels.bound("adamw", ctypes.byref(scalars), ELEMENTS, *arrays, None)
    tensors = [[torch.full((ELEMENTS,), 0.5)] for _ in range(4)]
    p, g, m, v = tensors
    step = [torch.tensor(5.0)]

    def fused() -> None:
        torch._fused_adamw_(p, g, m, v, [], step, lr=3e-4, beta1=0.9, beta2=0.999,
                            weight_decay=0.01, eps=1e-8, amsgrad=False, maximize=False)  # fmt: skip

    compare("adamw", call, fused)


def main() -> None:
    """Every table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    tables = {kernels.name: kernels for kernels in all_kernels()}
    parser.add_argument(
        "isa", nargs="?", choices=tables, default=next(iter(tables)),
        help="the instruction set (default: the best here)",
    )  # fmt: skip
    name = parser.parse_args().isa
    torch.set_num_threads(1)
    print(
        f"portable {name} against torch {torch.__version__}",
        torch.backends.cpu.get_cpu_capability(),
    )
    for part in (functions, gradients, rows, draws, adamw):
        part(tables[name])


if __name__ == "__main__":
    main()
