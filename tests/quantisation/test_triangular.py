"""The factor of a damped Hessian's inverse, against LAPACK and against itself."""

from __future__ import annotations

import numpy as np
import pytest

from kolm_build.errors import NotFiniteError
from kolm_build.steps.quantisation import triangular

SIZES = (1, 2, 7, 31, 32, 33, 64, 100)


def hessian(size, *, seed=0, tokens=3):
    rows = np.random.default_rng(seed).standard_normal((tokens * size, size))
    return rows.T @ rows


@pytest.mark.parametrize("size", SIZES)
def test_the_factor_is_cholesky_s_of_the_inverse(size):
    """QUANT-74."""
    matrix = hessian(size)
    want = np.linalg.cholesky(np.linalg.inv(matrix)).T
    np.testing.assert_allclose(triangular.inverse_factor(matrix), want, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_the_factor_s_square_times_the_matrix_is_one(size):
    factor = triangular.inverse_factor(hessian(size))
    assert (np.tril(factor, -1) == 0).all()
    assert (np.diagonal(factor) > 0).all()
    np.testing.assert_allclose(factor.T @ factor @ hessian(size), np.eye(size), atol=1e-9)


def plain_upper_factor(matrix):
    """Element by element, in the order that QUANT-74 says."""
    size = len(matrix)
    factor = np.zeros_like(matrix)
    for row in range(size):
        for column in range(row, size):
            left = matrix[row, column]
            for before in range(row):
                left = left - factor[before, row] * factor[before, column]
            factor[row, column] = left
        factor[row, row:] = factor[row, row:] / np.sqrt(factor[row, row])
    return factor


def plain_lower_inverse(upper):
    size = len(upper)
    inverse = np.zeros_like(upper)
    for row in range(size):
        for column in range(row + 1):
            left = np.float64(row == column)
            for before in range(column, row):
                left = left - upper[before, row] * inverse[before, column]
            inverse[row, column] = left / upper[row, row]
    return inverse


@pytest.mark.parametrize("panel", [1, 5, 32])
def test_every_rounding_is_where_the_page_says_for_any_panel(panel, monkeypatch):
    """QUANT-74."""
    monkeypatch.setattr(triangular, "PANEL", panel)
    matrix = hessian(23)
    factor = triangular.upper_factor(matrix)
    assert matrix.tobytes() == hessian(23).tobytes()
    assert factor.tobytes() == plain_upper_factor(matrix).tobytes()
    inverse = triangular.lower_inverse(factor)
    assert np.array_equal(inverse, plain_lower_inverse(factor))


def test_a_matrix_that_is_not_positive_definite_is_refused():
    """QUANT-73."""
    with pytest.raises(NotFiniteError, match="not positive definite") as refusal:
        triangular.inverse_factor(np.diag([1.0, 0.0, 2.0]))
    assert "Raise the damping" in str(refusal.value)
