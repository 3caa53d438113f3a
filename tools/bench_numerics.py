"""Time the portable kernels against stock PyTorch, as ratios of one run.

    python tools/bench_numerics.py [--section NAME]... [--threads 1] [--isa avx512] [--seconds 2]

Every line is `ratio = median over interleaved pairs of (stock time / portable time)`: above 1 the
portable kernel is faster. With one thread the clock is the thread's CPU time, so that neighbours on
the machine do not count; with more it is the wall. The peak is that of a loop of nothing but fused
multiply-adds. To hold stock to AVX2 as well, set MKL_ENABLE_INSTRUCTIONS=AVX2 (Intel CPUs only).

The kernels come from the testing library (tests/numerics/testing_library.py says how it is built).
A section is one function of SECTIONS: it takes the bench and prints its lines.

For example:

    python tools/bench_numerics.py --section gemm --only lm_head
    MKL_ENABLE_INSTRUCTIONS=AVX2 python tools/bench_numerics.py --isa avx2 --section gemm
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.numerics.testing_library import (
    BFLOAT16,
    FLOAT32,
    AttentionOptions,
    Library,
    Matrix,
    Product,
)
from tools import bench_steps

WARM_UP = 2
MOST_PAIRS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every section gets: the kernels, which of them, and for how long."""

    library: Library
    isa: str
    threads: int
    seconds: float
    only: str

    def clock(self) -> float:
        """Seconds: of this thread's CPU where it does all the work, else of the wall."""
        return time.thread_time() if self.threads == 1 else time.perf_counter()

    def compare(
        self, name: str, stock: Callable[[], object], ours: Callable[[], object], *, flops: float
    ) -> None:
        """Run both in turn and print one line; a name without `only` in it is left out."""
        if self.only not in name:
            return
        for _ in range(WARM_UP):
            stock(), ours()
        pairs = list(self._pairs(stock, ours))
        ratio = statistics.median(a / b for a, b in pairs)
        theirs, mine = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(
            f"{name:42s} stock {flops / theirs / 1e9:8.1f}  portable {flops / mine / 1e9:8.1f} GF/s"
            f"  {mine * 1e6:10.1f} us  ratio {ratio:5.2f}  ({len(pairs)} pairs)",
            flush=True,
        )

    def _pairs(
        self, stock: Callable[[], object], ours: Callable[[], object]
    ) -> Iterator[tuple[float, float]]:
        end = time.perf_counter() + self.seconds
        for count in range(MOST_PAIRS):
            if count > 2 and time.perf_counter() > end:
                return
            yield self._time(stock), self._time(ours)

    def _time(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start


def peak(library: Library, isa: str) -> float:
    """GF/s of one thread that does nothing but fused multiply-adds, the best of ten tries."""
    best = 0.0
    for _ in range(10):
        start = time.thread_time()
        done = library.multiply_adds(isa, 4_000_000)
        best = max(best, done / (time.thread_time() - start) / 1e9)
    return best


def operand(tensor: torch.Tensor) -> Matrix:
    """The tensor's memory as the kernels see it."""
    if tensor.dtype is torch.float32:
        return Matrix(array=tensor.numpy(), element=FLOAT32, strides=tensor.stride())
    return Matrix(array=tensor.view(torch.int16).numpy(), element=BFLOAT16, strides=tensor.stride())


# Matrix products. A layout has a letter for each operand: t where it is a transpose in memory.
# nt is a linear layer, nn the gradient of its input, tn that of its weight.

SMOLLM2 = [  # the linear layers of SmolLM2-135M: name, outputs, inputs
    ("q", 576, 576),
    ("kv", 192, 576),
    ("gate", 1536, 576),
    ("down", 576, 1536),
]
LM_HEAD = ("lm_head", 49152, 576)
Named = tuple[str, int, int, int, str]


def linear_products(name: str, outputs: int, inputs: int, tokens: int) -> list[Named]:
    return [
        (f"{name} forward", tokens, outputs, inputs, "nt"),
        (f"{name} dX", tokens, inputs, outputs, "nn"),
        (f"{name} dW", outputs, inputs, tokens, "tn"),
    ]


def products() -> Iterator[Named]:
    for tokens in (512, 2048):
        for name, outputs, inputs in SMOLLM2:
            yield from linear_products(name, outputs, inputs, tokens)
    yield from linear_products(*LM_HEAD, 512)
    yield ("4k", 1024, 4096, 4096, "nn")
    yield ("4k", 1024, 4096, 4096, "nt")
    yield ("4k", 4096, 4096, 1024, "tn")
    yield ("7B gate", 512, 11008, 4096, "nt")
    yield from linear_products("lora A", 16, 576, 512)
    yield from linear_products("lora B", 576, 16, 512)
    yield from linear_products("lora A", 8, 576, 2048)
    for rows in (2, 4, 8, 16, 32):
        yield (f"{rows} rows", rows, 4096, 4096, "nt")
        yield (f"{rows} rows", rows, 4096, 4096, "nn")
        yield (f"{rows} rows", rows, 576, 576, "nt")


def random_operands(m: int, n: int, k: int, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    a = torch.randn(m, k) if layout[0] == "n" else torch.randn(k, m).t()
    b = torch.randn(k, n) if layout[1] == "n" else torch.randn(n, k).t()
    return a, b


def gemm(bench: Bench) -> None:
    """Products of training: torch.mm against the kernels, both writing a given result."""
    for name, m, n, k, layout in products():
        a, b = random_operands(m, n, k, layout)
        theirs, ours = torch.empty(m, n), torch.empty(m, n)
        task = Product(operand(a), operand(b), (m, n, k))
        bench.compare(
            f"{name} {m}x{n}x{k} {layout}",
            partial(torch.mm, a, b, out=theirs),
            bench.library.gemm_call(bench.isa, bench.threads, task, ours.numpy()),
            flops=2.0 * m * n * k,
        )


def decode(bench: Bench) -> None:
    """One row times a weight, and few, as it lies and as `pack` wrote it."""
    shapes = [(outputs, inputs) for _, outputs, inputs in [*SMOLLM2, LM_HEAD]]
    for n, k in [*shapes, (4096, 4096), (11008, 4096)]:
        few_rows(bench, 1, n, k, ("packed", "as it lies"))
    for rows in (2, 4, 8):
        for n, k in [*shapes, (4096, 4096)]:
            few_rows(bench, rows, n, k, ("packed",))


def few_rows(bench: Bench, rows: int, n: int, k: int, ways: Sequence[str]) -> None:
    a, weight = torch.randn(rows, k), torch.randn(n, k)
    theirs, ours = torch.empty(rows, n), torch.empty(rows, n)
    task = Product(operand(a), operand(weight.t()), (rows, n, k))
    packed = bench.library.pack(bench.isa, bench.threads, task)
    which = bench.isa, bench.threads, task
    runs = {
        "packed": bench.library.gemm_packed_call(*which, packed, out=ours.numpy()),
        "as it lies": bench.library.gemm_call(*which, ours.numpy()),
    }
    for how in ways:
        bench.compare(
            f"decode {rows}x{n}x{k} {how}",
            partial(torch.mm, a, weight.t(), out=theirs),
            runs[how],
            flops=2.0 * rows * n * k,
        )


# Attention: heads, key heads, width as in SmolLM2-135M.

ATTENTION = [(1, 9, 3, 512, 64), (1, 9, 3, 2048, 64), (8, 9, 3, 256, 64), (1, 32, 8, 1024, 128)]


def attention(bench: Bench) -> None:
    """Causal attention, forward alone and with its gradient, against stock's fused kernel."""
    ours = bench.library
    which = bench.isa, bench.threads
    for batch, heads, key_heads, tokens, width in ATTENTION:
        q = torch.randn(batch, heads, tokens, width, requires_grad=True)
        k, v = (torch.randn(batch, key_heads, tokens, width, requires_grad=True) for _ in range(2))
        dout = torch.randn(batch, heads, tokens, width)
        arrays = [tensor.detach().numpy() for tensor in (q, k, v)]
        options = AttentionOptions(scale=width**-0.5, causal=True)
        forward = partial(ours.attention_forward, *which, *arrays, options=options)
        backward = partial(
            ours.attention_backward, *which, *arrays, dout=dout.numpy(), options=options
        )
        name = f"{batch}x{heads}/{key_heads}x{tokens}x{width}"
        seen = 2.0 * batch * heads * tokens * tokens * width  # flops of one product, half masked
        bench.compare(
            f"attention forward {name}", partial(stock_forward, q, k, v), forward, flops=seen * 2
        )
        bench.compare(
            f"attention both {name}",
            partial(stock_both, q, k, v, dout),
            partial(one_by_one, forward, backward),
            flops=seen * 7,
        )


def stock(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )


def stock_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return stock(q, k, v)


def stock_both(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor
) -> list[torch.Tensor]:
    return list(torch.autograd.grad(stock(q, k, v), (q, k, v), dout))


def one_by_one(*calls: Callable[[], object]) -> None:
    for call in calls:
        call()


def of_steps(section: Callable[[bench_steps.Runs], None]) -> Callable[[Bench], None]:
    """A section of whole runs: those load the library that registers the kernels with PyTorch."""
    return lambda bench: section(
        bench_steps.Runs(
            isa=bench.isa, threads=bench.threads, seconds=bench.seconds, only=bench.only
        )
    )


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "gemm": gemm,
    "decode": decode,
    "attention": attention,
    "train": of_steps(bench_steps.train),
    "optimizer": of_steps(bench_steps.optimizer),
    "generate": of_steps(bench_steps.generate),
}


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def parse_arguments() -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--section", action="append", choices=SECTIONS, help="default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", help="default: the best that this machine can run")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line")
    parser.add_argument("--only", default="", help="lines that have this text in their name")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    library = Library()
    isa = arguments.isa or library.isas()[0]
    if isa not in library.isas():
        sys.exit(f"--isa {isa}: this machine can run {', '.join(library.isas())}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    bench = Bench(
        library=library,
        isa=isa,
        threads=arguments.threads,
        seconds=arguments.seconds,
        only=arguments.only,
    )
    print(f"{cpu_model()}; kernels {isa}; {bench.threads} threads; torch {torch.__version__}")
    stock = torch.backends.cpu.get_cpu_capability()
    print(f"stock {stock}; peak of one thread {peak(library, isa):.0f} GF/s")
    for section in arguments.section or SECTIONS:
        SECTIONS[section](bench)


if __name__ == "__main__":
    main()
