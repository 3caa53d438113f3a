"""Which functions of a script are the machine's C library, by reading its files (spec/steps.md).

The last bit of such a function depends on the processor, so a script that uses one may write other
bytes on another machine. The types of a program's values are not known from its text: only names
and the powers of written decimals are found.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

EXACT_MATH = frozenset(
    {
        *("ceil", "comb", "copysign", "degrees", "e", "fabs", "factorial", "floor", "fma"),
        *("fmod", "frexp", "fsum", "gcd", "inf", "isclose", "isfinite", "isinf", "isnan"),
        *("isqrt", "lcm", "ldexp", "modf", "nan", "nextafter", "perm", "pi", "prod", "radians"),
        *("remainder", "sqrt", "tau", "trunc", "ulp"),
    }
)
"""What `math` computes by integers or by single operations of IEEE 754; all else is libm's."""

EXACT_CMATH = frozenset({"e", "inf", "infj", "isclose", "isfinite", "isinf", "isnan", "nan", "nanj",
                         "pi", "tau"})  # fmt: skip

MACHINE: Mapping[str, frozenset[str]] = {
    "random": frozenset(
        {
            *("betavariate", "binomialvariate", "expovariate", "gammavariate", "gauss"),
            *("lognormvariate", "normalvariate", "paretovariate", "vonmisesvariate"),
            "weibullvariate",
        }
    ),
    "statistics": frozenset({"NormalDist", "geometric_mean", "kde", "kde_random"}),
}
"""What other modules of the standard library compute by libm."""


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Use:
    """One use of the machine's arithmetic; sorted by line.

    Attributes:
        line: Its line, from 1.
        name: Such as ``math.exp``, or ``**`` with the written number.
    """

    line: int
    name: str


def is_machines(module: str, name: str) -> bool:
    """Whether `name` of the standard library's `module` asks the C library."""
    if name.startswith("_"):
        return False
    if module == "math":
        return name not in EXACT_MATH
    if module == "cmath":
        return name not in EXACT_CMATH
    return name in MACHINE.get(module, frozenset())


def uses(source: str) -> tuple[Use, ...]:
    """The uses in the Python text `source`, the first of each name, by line.

    Raises:
        SyntaxError: It is not Python.
    """
    first: dict[str, int] = {}
    for line, name in _found(ast.parse(source)):
        first[name] = min(line, first.get(name, line))
    return tuple(sorted(Use(line=line, name=name) for name, line in first.items()))


def _found(tree: ast.Module) -> Iterator[tuple[int, str]]:
    modules = _imported_modules(tree)
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), level=0):
                for alias in node.names:
                    if is_machines(module, alias.name):
                        yield node.lineno, f"{module}.{alias.name}"
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in modules:
                if is_machines(modules[name], attribute):
                    yield node.lineno, f"{modules[name]}.{attribute}"
            case ast.BinOp(op=ast.Pow()):
                for operand in (node.left, node.right):
                    if isinstance(operand, ast.Constant) and isinstance(operand.value, float):
                        yield node.lineno, f"** with {operand.value!r}"
            case _:
                pass


def _imported_modules(tree: ast.Module) -> Mapping[str, str]:
    """What the modules that are imported whole are called."""
    return {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
