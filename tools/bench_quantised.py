"""Time products with quantised weights against stock PyTorch's float32 linear: ratios of one run.

    python tools/bench_quantised.py [--threads 1] [--rows 1,64] [--only w4] [--isa avx2]

Every line is `ratio = median over interleaved pairs of (stock time / our time)`: above 1 ours is
faster. The shapes are the linear layers and the head of SmolLM2-135M. As in a model that writes one
token after another, no call finds its weight in a small cache: each takes the next of copies that
have 64 million numbers together. With one thread the clock is the process's CPU time, so
that the work of neighbours on the machine does not count (what they take of the caches and of the
memory does); with more it is the wall, which they disturb: take such figures from a quiet machine.
`sum` is one token of the whole model: 30 layers and the head.

For example:

    python tools/bench_quantised.py --rows 1 --only w4a16
    python tools/bench_quantised.py --threads 2 --isa avx2
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kolm_build.numerics import portable

SHAPES = {  # outputs, inputs, and how often a token meets it
    "q,o": (576, 576, 60),
    "k,v": (192, 576, 60),
    "gate,up": (1536, 576, 60),
    "down": (576, 1536, 30),
    "head": (49152, 576, 1),
}
COPIES_BYTES = 64 << 20
MOST_PAIRS = 1000
WARM_UP = 2

Call = Callable[[torch.Tensor], torch.Tensor]


def words(n: int, k: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (n, k), dtype=torch.int32)


def small(n: int, k: int) -> torch.Tensor:
    return torch.rand(n, k) * 0.01


def w4(n: int, k: int, op: str) -> Call:
    weight, scale = words(n, k // 8), small(n, k // 64).bfloat16()
    run = getattr(torch.ops.kolm_portable, op)
    return lambda x: run(x, weight, scale, None, 4, 64)


def w4_asymmetric(n: int, k: int) -> Call:
    weight, scale, zeros = words(n, k // 8), small(n, k // 64).bfloat16(), words(n // 8, k // 64)
    run = torch.ops.kolm_portable.quantised_linear_int
    return lambda x: run(x, weight, scale, zeros, 4, 64)


def w8(n: int, k: int, op: str) -> Call:
    weight, scale = words(n, k // 4).view(torch.int8), small(n, 1).bfloat16()
    run = getattr(torch.ops.kolm_portable, op)
    return lambda x: run(x, weight, scale, None, 8, 0)


def fp8(n: int, k: int) -> Call:
    codes = torch.randint(0, 126, (n, k), dtype=torch.uint8)
    weight, scale = codes.view(torch.float8_e4m3fn), small(n, 1)
    return lambda x: torch.ops.kolm_portable.quantised_linear_fp8(x, weight, scale)


def nvfp4(n: int, k: int) -> Call:
    packed = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    scale = torch.randint(1, 126, (n, k // 16), dtype=torch.uint8).view(torch.float8_e4m3fn)
    largest = torch.tensor([1000.0])
    return lambda x: torch.ops.kolm_portable.quantised_linear_nvfp4(x, packed, scale, largest)


def mxfp4(n: int, k: int) -> Call:
    packed = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    scale = torch.randint(110, 125, (n, k // 32), dtype=torch.uint8)
    return lambda x: torch.ops.kolm_portable.quantised_linear_mxfp4(x, packed, scale)


FORMATS: dict[str, Callable[[int, int], Call]] = {
    "w4a16": lambda n, k: w4(n, k, "quantised_linear_int"),
    "w4a16 asymmetric": w4_asymmetric,
    "w4a8": lambda n, k: w4(n, k, "quantised_linear_int_dynamic"),
    "w8a16": lambda n, k: w8(n, k, "quantised_linear_int"),
    "w8a8": lambda n, k: w8(n, k, "quantised_linear_int_dynamic"),
    "fp8": fp8,
    "nvfp4": nvfp4,
    "mxfp4": mxfp4,
}


def stock(n: int, k: int) -> Call:
    weight = torch.randn(n, k)
    return lambda x: torch.nn.functional.linear(x, weight)


@dataclass(frozen=True, slots=True)
class Bench:
    """How long, and by which clock."""

    threads: int
    seconds: float

    def clock(self) -> float:
        """Seconds: of this process's CPU where one thread does all the work, else of the wall."""
        return time.process_time() if self.threads == 1 else time.perf_counter()

    def pairs(
        self, theirs: list[Call], ours: list[Call], x: torch.Tensor
    ) -> Iterator[tuple[float, float]]:
        """Seconds of both, in turn."""
        end = time.perf_counter() + self.seconds
        for count in range(-WARM_UP, MOST_PAIRS):
            if count > 4 and time.perf_counter() > end:
                return
            pair = (
                self._time(theirs[count % len(theirs)], x),
                self._time(ours[count % len(ours)], x),
            )
            if count >= 0:
                yield pair

    def _time(self, call: Call, x: torch.Tensor) -> float:
        start = self.clock()
        call(x)
        return self.clock() - start


def copies(n: int, k: int) -> int:
    return -(-COPIES_BYTES // (n * k))


def measure(bench: Bench, name: str, rows: int) -> None:
    """The lines of one format for so many rows of x."""
    sums = [0.0, 0.0]
    for layer, (n, k, times) in SHAPES.items():
        count = copies(n, k)
        x = torch.randn(rows, k)
        theirs, ours = ([make(n, k) for _ in range(count)] for make in (stock, FORMATS[name]))
        pairs = list(bench.pairs(theirs, ours, x))
        ratio = statistics.median(a / b for a, b in pairs)
        medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
        sums = [total + times * median for total, median in zip(sums, medians, strict=True)]
        show(f"{name} {layer} {rows}x{n}x{k}", medians, ratio, len(pairs))
    show(f"{name} sum, {rows} rows", sums, sums[0] / sums[1], 0)


def show(name: str, medians: list[float], ratio: float, pairs: int) -> None:
    theirs, ours = (f"{one * 1e6:10.1f} us" for one in medians)
    print(
        f"{name:40s} stock {theirs}  ours {ours}  ratio {ratio:6.2f}  ({pairs} pairs)", flush=True
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", default="1,64", help="rows of x, separated by commas")
    parser.add_argument("--only", default="", help="formats with this in their name")
    parser.add_argument("--isa", default="", help="instruction set (default: the best)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    arguments = parser.parse_args(argv)
    portable.load()
    if arguments.isa:
        portable.set_isa(arguments.isa)
    torch.set_num_threads(arguments.threads)
    print(f"{portable.isa()}, {arguments.threads} threads, float32 x, torch {torch.__version__}")
    bench = Bench(arguments.threads, arguments.seconds)
    with torch.inference_mode():
        for name in FORMATS:
            for rows in map(int, arguments.rows.split(",")):
                if arguments.only in name:
                    measure(bench, name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
