"""Cholesky's factor of an inverse in binary64, every rounding fixed (QUANT-74).

LAPACK's bits depend on the machine. Here each element is made by products, differences, quotients
and roots in one order, and IEEE 754 rounds each of them in one way. Rows are worked on in panels
that stay in the cache; a panel's width changes no bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kolm_build.errors import NotFiniteError

PANEL = 32
"""Rows that are worked on together."""

Array = NDArray[np.float64]


def inverse_factor(matrix: Array) -> Array:
    """The upper triangular U with U' U = inverse of `matrix`, its diagonal positive.

    With the order of rows and columns turned round, `matrix` is C' C, and U is the inverse of C',
    turned round again: one factorisation and one inverse of a triangle, no inverse of a matrix.

    Args:
        matrix: Shape (size, size), symmetric and positive definite; only its lower left half is
            read.

    Returns:
        Shape (size, size), binary64.

    Raises:
        NotFiniteError: `matrix` holds a NaN, or is not positive definite.

    Determinism:
        The same bits on every machine, for any `PANEL`.

    Source: arXiv:2210.17323, section 3.3, step 3; the factor of the inverse without the inverse.
    """
    turned = np.ascontiguousarray(matrix[::-1, ::-1])
    return np.ascontiguousarray(lower_inverse(upper_factor(turned))[::-1, ::-1])


def upper_factor(matrix: Array) -> Array:
    """The upper triangular C with C' C = `matrix`; only the upper right half of it is read.

    Raises:
        NotFiniteError: A pivot is not a number above 0.
    """
    size = len(matrix)
    factor = np.zeros_like(matrix)
    for start in range(0, size, PANEL):
        end = min(start + PANEL, size)
        panel = matrix[start:end, start:].copy()
        product = np.empty_like(panel)
        for row in factor[:start, start:]:
            _subtract_outer(panel, row[: end - start], row, product)
        _factor_panel(panel)
        factor[start:end, start:] = np.triu(panel)
    return factor


def lower_inverse(upper: Array) -> Array:
    """The inverse of the transpose of `upper`: lower triangular, by substitution row by row."""
    size = len(upper)
    inverse = np.zeros_like(upper)
    for start in range(0, size, PANEL):
        end = min(start + PANEL, size)
        panel = np.zeros((end - start, end))
        panel[:, start:] = np.eye(end - start)
        product = np.empty_like(panel)
        for at in range(start):
            seen = slice(0, at + 1)  # the inverse's row `at` is zero behind its diagonal
            _subtract_outer(
                panel[:, seen], upper[at, start:end], inverse[at, seen], product[:, seen]
            )
        for at in range(start, end):
            own = at - start
            panel[own] /= upper[at, at]
            _subtract_outer(
                panel[own + 1 :], upper[at, at + 1 : end], panel[own], product[own + 1 :]
            )
        inverse[start:end, :end] = panel
    return inverse


def _factor_panel(panel: Array) -> None:
    """Make rows of C of `panel`, from which the rows before it are subtracted already."""
    product = np.empty_like(panel)
    for at in range(len(panel)):
        pivot = panel[at, at]
        if not pivot > 0 or not np.isfinite(pivot):
            raise NotFiniteError(
                "a Hessian is not positive definite",
                where=f"pivot {at}",
                expected="a number above 0",
                actual=str(pivot),
                advice="Raise the damping, or bring more and other calibration rows.",
            )
        panel[at, at:] /= np.sqrt(pivot)
        _subtract_outer(
            panel[at + 1 :, at + 1 :],
            panel[at, at + 1 : len(panel)],
            panel[at, at + 1 :],
            product[at + 1 :, at + 1 :],
        )


def _subtract_outer(panel: Any, column: Any, row: Any, product: Any) -> None:
    """Subtract column row' from `panel`, each product and each difference rounded."""
    np.multiply(column[:, None], row[None, :], out=product)
    np.subtract(panel, product, out=panel)
