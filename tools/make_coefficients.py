"""Print the polynomials of kolm_build/numerics/csrc/functions.h, made anew.

Each is a minimax approximation (Remez exchange in 60 digits); its coefficients are rounded to
binary64. The bound printed beside it is the largest relative error before that rounding. Nothing
rests on these numbers: what the functions give is checked for every input (tools/exhaustive).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from mpmath import mp, mpf

mp.dps = 60
GRID = 1200

Real = Callable[[mpf], mpf]


@dataclass(frozen=True, slots=True, kw_only=True)
class Approximation:
    """A polynomial of `degree` for `target` on [low, high]; `weight` scales its error."""

    name: str
    target: Real
    weight: Real
    low: mpf
    high: mpf
    degree: int


def _nodes(low: mpf, high: mpf, count: int) -> list[mpf]:
    middle, half = (low + high) / 2, (high - low) / 2
    return [middle - half * mp.cos(mp.pi * k / (count - 1)) for k in range(count)]


def _solve(a: Approximation, points: list[mpf]) -> list[mpf]:
    size = a.degree + 2
    matrix, right = mp.matrix(size, size), mp.matrix(size, 1)
    for row, x in enumerate(points):
        for power in range(a.degree + 1):
            matrix[row, power] = x**power
        matrix[row, size - 1] = (-1) ** row / a.weight(x)
        right[row] = a.target(x)
    return list(mp.lu_solve(matrix, right))[: a.degree + 1]


def _value(coefficients: list[mpf], x: mpf) -> mpf:
    return mp.polyval(coefficients[::-1], x)


def minimax(a: Approximation) -> tuple[list[mpf], mpf]:
    """The coefficients in ascending order, and the largest weighted error."""
    grid = _nodes(a.low, a.high, GRID)
    exact = [(x, a.target(x), a.weight(x)) for x in grid]
    points = _nodes(a.low, a.high, a.degree + 2)
    coefficients: list[mpf] = []
    worst = mp.inf
    for _ in range(8):
        coefficients = _solve(a, points)
        errors = [(_value(coefficients, x) - f) * w for x, f, w in exact]
        worst = max(abs(e) for e in errors)
        points = _alternation(grid, errors, a.degree + 2) or points
    return coefficients, worst


def _alternation(grid: list[mpf], errors: list[mpf], count: int) -> list[mpf] | None:
    runs: list[tuple[mpf, mpf]] = []
    for x, e in zip(grid, errors, strict=True):
        if runs and mp.sign(runs[-1][1]) == mp.sign(e):
            runs[-1] = max(runs[-1], (x, e), key=lambda pair: abs(pair[1]))
        else:
            runs.append((x, e))
    while len(runs) > count:
        runs.pop(0 if abs(runs[0][1]) < abs(runs[-1][1]) else -1)
    return [x for x, _ in runs] if len(runs) == count else None


def _exp_rest(r: mpf) -> mpf:
    return mpf("0.5") + r / 6 if r == 0 else (mp.expm1(r) - r) / r**2


def _exp2_rest(r: mpf) -> mpf:
    return mp.log(2) if r == 0 else mp.expm1(r * mp.log(2)) / r


def _log_rest(z: mpf) -> mpf:
    s = mp.sqrt(z)
    return mpf(2) / 3 if z == 0 else (mp.log((1 + s) / (1 - s)) - 2 * s) / (s * z)


def _erf_rest(z: mpf) -> mpf:
    return 2 / mp.sqrt(mp.pi) if z == 0 else mp.erf(mp.sqrt(z)) / mp.sqrt(z)


def _sin_rest(z: mpf) -> mpf:
    r = mp.sqrt(z)
    return mpf(-1) / 6 if z == 0 else (mp.sin(r) - r) / (r * z)


def _cos_rest(z: mpf) -> mpf:
    return mpf(1) / 24 if z == 0 else (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2


TAIL_CENTRE = mpf(3)
TAIL_END = mpf("10.25")


def _tail_rest(w: mpf) -> mpf:
    t = TAIL_CENTRE * (1 + w) / (1 - w)
    return mp.exp(t * t) * mp.erfc(t) * (t + TAIL_CENTRE)


def approximations() -> list[Approximation]:
    """What functions.h holds."""
    half_log2 = mp.log(2) / 2 * (1 + mpf(2) ** -20)
    quarter_pi = mp.pi / 4 * (1 + mpf(2) ** -20)
    root2 = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)
    unit = lambda _: mpf(1)  # noqa: E731 -- the weight of an absolute error
    return [
        Approximation(
            name="EXP",
            target=_exp_rest,
            weight=lambda r: r * r * mp.exp(-r) + mpf(10) ** -30,
            low=-half_log2,
            high=half_log2,
            degree=9,
        ),
        Approximation(
            name="EXP2", target=_exp2_rest, weight=unit, low=mpf(-1) / 2, high=mpf(1) / 2, degree=10
        ),
        Approximation(
            name="LOG",
            target=_log_rest,
            weight=unit,
            low=mpf(0),
            high=root2**2 * (1 + mpf(2) ** -20),
            degree=7,
        ),
        Approximation(
            name="SIN", target=_sin_rest, weight=unit, low=mpf(0), high=quarter_pi**2, degree=6
        ),
        Approximation(
            name="COS", target=_cos_rest, weight=unit, low=mpf(0), high=quarter_pi**2, degree=6
        ),
        Approximation(
            name="ERF",
            target=_erf_rest,
            weight=lambda z: 1 / _erf_rest(z),
            low=mpf(0),
            high=mpf(1),
            degree=12,
        ),
        Approximation(
            name="TAIL",
            target=_tail_rest,
            weight=lambda w: 1 / _tail_rest(w),
            low=mpf(-1),
            high=(TAIL_END - TAIL_CENTRE) / (TAIL_END + TAIL_CENTRE),
            degree=20,
        ),
    ]


def main() -> None:
    """Print every polynomial."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    for approximation in approximations():
        coefficients, worst = minimax(approximation)
        print(f"// {approximation.name}: error 2^{float(mp.log(worst, 2)):.1f}")
        print(", ".join(float(c).hex() for c in coefficients))


if __name__ == "__main__":
    main()
