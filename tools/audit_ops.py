"""Run the operations that the table calls exact on fixed inputs in many settings; compare the bits.

    python tools/audit_ops.py           # every setting, every type: about three minutes
    python tools/audit_ops.py --quick   # the settings that differ most: seconds
    python tools/audit_ops.py --only mul --json

A setting is one process: an instruction set of ATen, a number of threads, an environment of MKL and
oneDNN. The inputs hold odd sizes, strides, broadcasts, random bit patterns, NaN, both zeros,
subnormals and infinities. NaNs are compared as one value (spec/numerics.md, NUM-5); where NumPy has
the operation, its bits are compared, too. Exit status 1: an operation is not what the table says.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kolm_build.numerics.certified import table  # noqa: E402 -- the checkout's own

Arguments = tuple[Any, ...]
"""What an operation is called with; where the last is a dict, that is by name."""

CAPABILITIES = ("default", "avx2", "avx512")
LIBRARIES: tuple[dict[str, str], ...] = (
    {},
    {"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
)
TYPES = ("float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool")
FLOATS = TYPES[:4]
INTEGERS = TYPES[4:]
QUICK_TYPES = ("float32", "bfloat16", "int64")
COUNTED = ("int64", "int32", "uint8")
WIDE = ("int64", "int32")
LAYOUTS = ("dense", "strided", "row")


def settings(*, quick: bool) -> list[dict[str, str]]:
    """The environments to compare."""
    if quick:
        pairs = (("default", "1"), ("avx2", "2"), ("avx512", "2"))
        return [setting(capability, threads, {}) for capability, threads in pairs]
    return [
        setting(capability, threads, library)
        for capability in CAPABILITIES
        for threads in ("1", "2")
        for library in LIBRARIES
    ]


def setting(capability: str, threads: str, library: dict[str, str]) -> dict[str, str]:
    return {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": threads, **library}


# ------------------------------------------------------------------------------------ inputs


class Inputs:
    """Tensors of one type, the same in every process.

    Args:
        name: The type's name in torch.
        layout: ``dense``, ``strided`` or ``row`` (the second operand broadcasts).
    """

    ROWS, COLUMNS = 257, 131  # odd, and more than ATen's grain of 32768 elements

    def __init__(self, name: str, layout: str) -> None:
        self.name, self.layout = name, layout
        self.type: torch.dtype = getattr(torch, name)
        self.random = np.random.Generator(np.random.PCG64(7))
        self.x, self.y, self.z = self.make(), self.make(), self.make()
        self.meet()
        self.mask = self.flags()
        self.ties = self.zeros()
        if layout == "strided":
            self.x, self.z = self.strided(self.x), self.strided(self.z)
            self.mask = self.strided(self.mask)
        if layout == "row":
            self.y = self.y[0].clone()

    def make(self) -> Tensor:
        """Random numbers: half of them any bit pattern, half of ordinary size."""
        shape = (self.ROWS, self.COLUMNS)
        if self.name == "bool":
            return torch.from_numpy(self.random.integers(0, 2, shape).astype(np.bool_))
        if self.name in INTEGERS:
            low = 0 if self.name == "uint8" else -100
            small = self.random.integers(low, 100, shape).astype(self.name)
            if self.name == "uint8":
                return torch.from_numpy(small)
            wide = self.random.integers(-(2**62), 2**62, shape).astype(self.name)
            return torch.from_numpy(np.where(self.random.integers(0, 4, shape) > 0, small, wide))
        width = {"float64": 8, "float32": 4}.get(self.name, 2)
        bits = self.random.integers(0, 256, (*shape, width), dtype=np.uint8)
        wild = torch.from_numpy(bits.reshape(shape[0], -1)).view(self.type)
        tame = self.random.standard_normal(shape) * 3
        return torch.where(self.flags(), wild, self.narrow(tame))

    def narrow(self, values: NDArray[np.float64]) -> Tensor:
        """NumPy's float64 `values` as this type, by NumPy's own rounding or a cut."""
        if self.name == "bfloat16":
            words = values.astype("float32").view("uint32") >> 16
            return torch.from_numpy(words.astype("uint16")).view(self.type)
        return torch.from_numpy(values.astype(self.name))

    def meet(self) -> None:
        """Every pair of special values, side by side."""
        if self.name not in FLOATS:
            return
        limits = torch.finfo(self.type)
        small = limits.tiny * limits.eps
        values = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), small, -small]
        values += [limits.tiny, limits.max, limits.min, 1.0]
        special = torch.tensor(values, dtype=self.type)
        count = len(values)
        first, second = special.repeat_interleave(count), special.repeat(count)
        for row in (0, 100, 256):  # in vectors and in the tails after them
            self.x[row, -count * count :], self.y[row, -count * count :] = first, second

    def zeros(self) -> Tensor:
        """Zeros of both signs and numbers below them: a maximum of equals."""
        zero = torch.zeros_like(self.x)
        if self.name not in FLOATS:
            return zero
        return torch.where(self.flags(), -zero, torch.where(self.flags(), zero, zero - 1))

    def flags(self) -> Tensor:
        """Random booleans."""
        return torch.from_numpy(self.random.integers(0, 2, (self.ROWS, self.COLUMNS)) > 0)

    def index(self, high: int, shape: tuple[int, ...]) -> Tensor:
        """Random indices below `high`."""
        return torch.from_numpy(self.random.integers(0, high, shape))

    def strided(self, tensor: Tensor) -> Tensor:
        """Every second row of a transposed copy."""
        wide = tensor.new_zeros(self.COLUMNS, 2 * self.ROWS)
        wide[:, ::2] = tensor.t()
        return wide.t()[::2]


# ------------------------------------------------------------------------------------ calls

UNARY = (
    "abs", "ceil", "floor", "round", "trunc", "neg", "sign", "signbit", "isneginf", "isposinf",
    "isnan", "relu", "hardtanh", "logical_not", "bitwise_not",
)  # fmt: skip
BINARY = (
    "mul", "div", "add", "sub", "eq", "ge", "gt", "le", "lt", "ne", "maximum", "minimum",
    "bitwise_and", "bitwise_or", "bitwise_xor", "logical_and", "logical_or", "logical_xor",
)  # fmt: skip


def calls(base: str, overload: str, at: Inputs) -> list[Arguments]:
    """The arguments to try the operation `base` with; none if the type is not for it."""
    x, y, z = at.x, at.y, at.z
    rows, columns = at.ROWS, at.COLUMNS
    whole = at.name in INTEGERS
    number = 3 if whole else 0.3
    if base in ("bitwise_left_shift", "bitwise_right_shift"):
        return [(x, y.abs() % 7), (x, y)] if at.name in COUNTED else []
    if base.startswith("bitwise") and not whole:
        return []
    if at.name == "bool" and base in UNARRANGED:
        return []
    if base in UNARY:
        return [(x,)]
    if base in BINARY:
        if "Scalar" in overload:
            return [(x, number), (x, 0), (x, -1 if at.name not in ("bool", "uint8") else 1)]
        return [(x, y), (y, x), (x, torch.tensor(number))]
    row_index = at.index(rows, (301,))
    one = number if "Scalar" in overload else z[2, 3]
    made: dict[str, Callable[[], list[Arguments]]] = {
        "threshold": lambda: [(x, number, 20)],
        "threshold_backward": lambda: [(y.expand_as(x), x, 0)],
        "leaky_relu": lambda: [(x, 0.01)],
        "leaky_relu_backward": lambda: [(y.expand_as(x), x, 0.01, False)],
        "clamp": lambda: clamps(at, overload),
        "clamp_max": lambda: bounds(at, overload),
        "clamp_min": lambda: bounds(at, overload),
        "amax": lambda: [(one, dims) for one in extremes(at) for dims in ([1], [0], [0, 1])],
        "amin": lambda: [(one, dims) for one in extremes(at) for dims in ([1], [0], [0, 1])],
        "max": lambda: extreme_calls(at, overload),
        "min": lambda: extreme_calls(at, overload),
        "argmax": lambda: [(one, dim) for one in extremes(at) for dim in (1, 0, None)],
        "argmin": lambda: [(one, dim) for one in extremes(at) for dim in (1, 0, None)],
        "all": lambda: reductions(x, overload),
        "any": lambda: reductions(x, overload),
        "count_nonzero": lambda: [(x, [1])] if overload else [(x, None)],
        "nonzero": lambda: [(x,)],
        "bincount": lambda: [(x.flatten() % 50,)] if at.name in COUNTED else [],
        "isin": lambda: [(x, number if overload == "Tensor_Scalar" else z[0])],
        "_local_scalar_dense": lambda: [(x[3, 5],)],
        "equal": lambda: [(x, x.clone()), (x, z)],
        "copy": lambda: copies(at),
        "scalar_tensor": lambda: [(number, {"dtype": at.type})],
        "cat": lambda: [([x, z, x[:5]], 0), ([x, z], 1)],
        "stack": lambda: [([x, z], 0), ([x, z], -1)],
        "constant_pad_nd": lambda: [(x, [1, 2, 3, 0], number), (x, [-1, 2], 0)],
        "diagonal_copy": lambda: [(x, 1)],
        "embedding": lambda: [(x, row_index)],
        "flip": lambda: [(x, [0]), (x, [1]), (x, [0, 1])],
        "roll": lambda: [(x, [3, -2], [0, 1])],
        "gather": lambda: gathers(at),
        "index": lambda: indexed(at, row_index),
        "index_select": lambda: [(x, 0, row_index), (x, 1, at.index(columns, (9,)))],
        "index_copy": lambda: [(x, 0, permutation(at), z)],
        "index_fill": lambda: [(x, 0, row_index, one)],
        "masked_fill": lambda: [(x, at.mask, one)],
        "masked_scatter": lambda: [(x, at.mask, z.contiguous())],
        "masked_select": lambda: [(x, at.mask)],
        "repeat_interleave": lambda: [(x.abs()[0] % 5,)] if at.name in WIDE else [],
        "scatter": lambda: scatters(at, overload),
        "take": lambda: [(x, at.index(rows * columns, (77,)))],
        "tril": lambda: [(x, 0), (x, -3)],
        "triu": lambda: [(x, 0), (x, 5)],
        "where": lambda: [(at.mask, x, y), (at.mask, torch.tensor(number, dtype=at.type), x)],
    }  # fmt: skip
    return made[base]() if base in made else MISSING


UNARRANGED = (
    "abs", "neg", "sign", "sub", "leaky_relu", "leaky_relu_backward", "threshold",
    "threshold_backward", "hardtanh", "clamp", "clamp_max", "clamp_min", "relu", "ceil", "floor",
    "round", "trunc",
)  # fmt: skip
MISSING: list[Arguments] = [()]
NOTHING_COMPUTED = ("views", "memory", "marks")


def reductions(x: Tensor, overload: str) -> list[Arguments]:
    if overload.startswith("dims"):
        return [(x, [0, 1]), (x, [1])]
    return [(x, 0), (x, 1)] if overload in ("dim", "out") else [(x,)]


def clamps(at: Inputs, overload: str) -> list[Arguments]:
    if overload.startswith("Tensor"):
        return [(at.x, at.y, at.z), (at.x, at.y)]
    low = 1 if at.name == "uint8" else -1
    return [(at.x, low, 2), (at.x, 0), (at.x, None, 3)]


def bounds(at: Inputs, overload: str) -> list[Arguments]:
    return [(at.x, at.y)] if overload.startswith("Tensor") else [(at.x, 0), (at.x, 3)]


def scatters(at: Inputs, overload: str) -> list[Arguments]:
    value = 3 if "value" in overload else at.z
    shapes = ((0, at.ROWS, (at.ROWS, at.COLUMNS)), (1, at.COLUMNS, (at.ROWS, 9)))
    return [(at.x, dim, at.index(high, shape), value) for dim, high, shape in shapes]


def gathers(at: Inputs) -> list[Arguments]:
    shapes = ((0, at.ROWS, (300, at.COLUMNS)), (1, at.COLUMNS, (at.ROWS, 7)))
    return [(at.x, dim, at.index(high, shape)) for dim, high, shape in shapes]


def indexed(at: Inputs, rows: Tensor) -> list[Arguments]:
    return [(at.x, [rows]), (at.x, [None, at.index(at.COLUMNS, (9,))]), (at.x, [at.mask])]


def permutation(at: Inputs) -> Tensor:
    return torch.from_numpy(at.random.permutation(at.ROWS))


def copies(at: Inputs) -> list[Arguments]:
    empty = (torch.zeros(at.ROWS, at.COLUMNS, dtype=getattr(torch, to)) for to in TYPES)
    return [(one, fitting(at.x, to)) for one, to in zip(empty, TYPES, strict=True)]


def extremes(at: Inputs) -> tuple[Tensor, ...]:
    """What to look for a maximum in: with NaN, without, with zeros of both signs."""
    if at.name not in FLOATS:
        return at.x, at.z
    return at.x, at.x.nan_to_num(0.5), at.ties, -at.ties


def extreme_calls(at: Inputs, overload: str) -> list[Arguments]:
    if overload.startswith("dim"):
        return [(one, dim) for one in extremes(at) for dim in (1, 0)]
    return [(one,) for one in extremes(at)]


def fitting(x: Tensor, to: str) -> Tensor:
    """`x`, with numbers that the type `to` cannot hold made small."""
    if to not in INTEGERS or not x.is_floating_point():
        return x
    near = x.nan_to_num(1.0).float()
    return near.where((near > -1) & (near < 100), near.new_ones(())).to(x.dtype)


def run(operator: Any, base: str, arguments: Arguments, *, inplace: bool, out: bool) -> object:
    """The result of one call of torch's `operator`, in place and with `out` as that has it."""
    arguments, named = split(arguments)
    if inplace:
        return operator(arguments[0].clone(), *arguments[1:], **named)
    if not out:
        return operator(*arguments, **named)
    plain = getattr(torch.ops.aten, base)(*arguments, **named)
    outs = plain if isinstance(plain, tuple) else (plain,)
    names = [argument.name for argument in operator._schema.arguments if argument.is_out]  # noqa: SLF001
    fresh = {name: torch.empty(0, dtype=one.dtype) for name, one in zip(names, outs, strict=True)}
    return operator(*arguments, **named, **fresh)


def split(arguments: Arguments) -> tuple[Arguments, dict[str, Any]]:
    if arguments and isinstance(arguments[-1], dict):
        return arguments[:-1], arguments[-1]
    return arguments, {}


# ------------------------------------------------------------------------------------ digests


def digest(value: object) -> str:
    """A digest of a result's bits, every NaN made one."""
    sha = hashlib.sha256()
    for one in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(one, Tensor):
            sha.update(f"{one.dtype}{tuple(one.shape)}".encode())
            sha.update(bits(one))
        else:
            sha.update(repr(one).encode())
    return sha.hexdigest()[:16]


def bits(tensor: Tensor) -> bytes:
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    array: NDArray[Any] = tensor.contiguous().view(words[tensor.element_size()]).numpy().copy()
    if tensor.is_floating_point():
        array[nans(tensor, array)] = -1
    return array.tobytes()


def nans(tensor: Tensor, array: NDArray[Any]) -> NDArray[np.bool_]:
    """Where `array`, the bits of `tensor`, is NaN: told from the bits, not by an operation."""
    infinity = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}
    magnitude = array & ((1 << (8 * array.itemsize - 1)) - 1)
    return magnitude > infinity.get(tensor.dtype, 0x7FF << 52)


# ------------------------------------------------------------------------------------ a process


def audit_here(only: str, *, quick: bool) -> dict[str, str]:
    """Every case's digest in this process's setting."""
    warnings.filterwarnings("ignore")
    torch.use_deterministic_algorithms(True)  # noqa: FBT003
    found: dict[str, str] = {}
    for name in QUICK_TYPES if quick else TYPES:
        for layout in LAYOUTS[:2] if quick else LAYOUTS:
            found |= audit_type(Inputs(name, layout), only)
    return found | controls()


def controls() -> dict[str, str]:
    """Operations that are known to differ: an audit that calls them equal sees nothing."""
    at = Inputs("float32", "dense")
    tame = at.x.nan_to_num(0.5, 1.0, -1.0).clamp(-9, 9)
    return {
        "control add-alpha": digest(torch.add(tame, at.z, alpha=0.1)),
        "control lerp": digest(torch.lerp(tame, at.z, 0.3)),
        "control softmax": digest(torch.softmax(tame, -1)),
    }


def audit_type(at: Inputs, only: str) -> dict[str, str]:
    found = {}
    for operator in table().values():
        if operator.how != "exact" or only not in operator.name:
            continue
        if operator.section in NOTHING_COMPUTED:
            continue
        for number, text in enumerate(cases(operator.name, at)):
            found[f"{operator.name} {at.name} {at.layout} {number}"] = text
    return found


def cases(name: str, at: Inputs) -> Iterator[str]:
    full, _, overload = name.removeprefix("aten::").partition(".")
    inplace, out = full.endswith("_"), "out" in overload or overload in OUTS
    base = full.removesuffix("_")
    operator = getattr(getattr(torch.ops.aten, full), overload or "default")
    for arguments in calls(base, overload, at):
        if not arguments:
            yield "no case"
            continue
        yield attempt(operator, base, arguments, inplace=inplace, out=out)


OUTS = ("dim_max", "dim_min", "grad_input")


def attempt(operator: Any, base: str, arguments: Arguments, *, inplace: bool, out: bool) -> str:
    try:
        return digest(run(operator, base, arguments, inplace=inplace, out=out))
    except (RuntimeError, NotImplementedError, IndexError) as error:
        return f"refused: {str(error).splitlines()[0][:60]}"


# ------------------------------------------------------------------------------------ NumPy


def against_numpy(only: str) -> list[str]:
    """What differs from NumPy, of the operations that NumPy has."""
    functions: dict[str, np.ufunc] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
        "neg": np.negative, "abs": np.abs, "ceil": np.ceil, "floor": np.floor, "trunc": np.trunc,
        "round": np.rint, "eq": np.equal, "lt": np.less, "ge": np.greater_equal,
        "logical_and": np.logical_and, "signbit": np.signbit,
    }  # fmt: skip
    different = []
    for name, function in functions.items():
        if only not in f"aten::{name}":
            continue
        for kind in ("float32", "float64", "float16"):
            at = Inputs(kind, "dense")
            arguments = (at.x, at.y)[: function.nargs - 1]
            with np.errstate(all="ignore"):
                wanted = torch.from_numpy(np.asarray(function(*(one.numpy() for one in arguments))))
            if digest(getattr(torch, name)(*arguments)) != digest(wanted):
                different.append(f"{name} {kind}")
    return different


# ------------------------------------------------------------------------------------ the sweep


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the settings' digests say.

    Attributes:
        settings: How many were compared,
        cases: in how many cases of an operation, a type and a layout.
        differing: The settings whose bits are not those of the first, by case.
        untried: Operations that no case ran.
        blind: Controls that are the same everywhere.
        numpy: What has not NumPy's bits.
    """

    settings: int
    cases: int
    differing: dict[str, list[str]]
    untried: list[str]
    blind: list[str]
    numpy: list[str]

    @property
    def is_good(self) -> bool:
        """Whether the table is right, as far as this machine can tell."""
        return not (self.differing or self.untried or self.blind or self.numpy)


def sweep(only: str, tell: Callable[[str], None], *, quick: bool) -> Found:
    """Every setting's digests compared."""
    wanted = settings(quick=quick)
    answers = []
    start = time.perf_counter()
    for number, environment in enumerate(wanted):
        answers.append(in_process(environment, only, quick=quick))
        spent = time.perf_counter() - start
        left = spent / (number + 1) * (len(wanted) - number - 1)
        tell(f"{number + 1}/{len(wanted)} settings, about {left:.0f} s left")
    return compare(wanted, answers, against_numpy(only))


def in_process(environment: dict[str, str], only: str, *, quick: bool) -> dict[str, str]:
    command = [sys.executable, __file__, "--worker", "--only", only]
    if quick:
        command.append("--quick")
    whole = {**os.environ, **environment, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=whole, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{environment}: the process failed\n{done.stderr}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def compare(wanted: list[dict[str, str]], answers: list[dict[str, str]], numpy: list[str]) -> Found:
    first = answers[0]
    differing: dict[str, list[str]] = {}
    for environment, answer in zip(wanted, answers, strict=True):
        for case in sorted(set(first) | set(answer)):
            if first.get(case) != answer.get(case):
                differing.setdefault(case, []).append(
                    " ".join(f"{k}={v}" for k, v in environment.items())
                )
    blind = sorted(case for case in first if case.startswith("control") and case not in differing)
    differing = {case: where for case, where in differing.items() if not case.startswith("control")}
    untried = {case.split()[0] for case in first} - {
        case.split()[0]
        for case, text in first.items()
        if text != "no case" and not text.startswith("refused")
    }
    return Found(
        settings=len(wanted),
        cases=len(first),
        differing=differing,
        untried=sorted(untried),
        blind=blind,
        numpy=numpy,
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three settings, three types")
    parser.add_argument("--only", default="", metavar="TEXT", help="operations whose name has TEXT")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        print(json.dumps(audit_here(args.only, quick=args.quick)))
        return 0
    found = sweep(args.only, lambda text: print(text, file=sys.stderr), quick=args.quick)
    if args.json:
        print(json.dumps(asdict(found), indent=1, sort_keys=True))
    else:
        show(found)
    return 0 if found.is_good else 1


def show(found: Found) -> None:
    for case, where in found.differing.items():
        print(f"{case}: differs in {len(where)} settings, such as {where[0]}")
    for name in found.numpy:
        print(f"{name}: NumPy has other bits")
    for name in found.untried:
        print(f"{name}: no case ran")
    for name in found.blind:
        print(f"{name}: is the same everywhere here; the audit would not see a difference")
    print(f"{found.cases} cases in {found.settings} settings: {len(found.differing)} differ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
