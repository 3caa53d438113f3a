"""Every method against its formula in NumPy's float64; spec/algorithms-merging.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.merging import references
from tests.merging.groups import digest, merged, tensors, weights_of

pytestmark = pytest.mark.usefixtures("portable")

SHAPES = [(7,), (13, 29), (3, 5, 8), (64, 64)]
WEIGHTS = ["1", "1,2,0.5", "0.3,0,0.7"]
TOLERANCE = 1e-6


def arrays(base, models):
    return base.double().numpy(), [one.double().numpy() for one in models]


def changes_of(base, models):
    """Task vectors as the step rounds them, in float64: which are the largest is decided there."""
    return [(one - base).double().numpy() for one in models]


def assert_close(found, wanted):
    """To 1e-6 of the numbers' size, which is about 1."""
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_soup_is_the_weighted_mean(shape, weights):
    """MERGE-8."""
    base, models = tensors(shape, 3)
    _, found = arrays(base, models)
    wanted = references.soup(found, weights_of(weights, 3))
    assert_close(merged("soup", base, models, weights=weights), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [*WEIGHTS, "-1,0.5,2"])
@pytest.mark.parametrize("scale", ["1", "0.3"])
def test_task_arithmetic_adds_weighted_task_vectors(shape, weights, scale):
    """MERGE-9."""
    base, models = tensors(shape, 3)
    plain, _ = arrays(base, models)
    wanted = references.linear(
        plain, changes_of(base, models), weights_of(weights, 3), float(scale)
    )
    assert_close(merged("task-arithmetic", base, models, weights=weights, scale=scale), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", ["0.2", "0.77", "1"])
def test_ties_trims_elects_and_merges(shape, weights, density):
    """MERGE-7, MERGE-10, MERGE-11."""
    base, models = tensors(shape, 3)
    plain, _ = arrays(base, models)
    count = max(1, round(float(density) * 100) * base.numel() // 100)
    changes = [references.trimmed(one, count) for one in changes_of(base, models)]
    wanted = references.elected(plain, changes, weights_of(weights, 3), 0.7)
    found = merged("ties", base, models, weights=weights, density=density, scale="0.7")
    assert_close(found, wanted)


def dropped(base, models, chances_of, *, seed=3, name="w"):
    """Task vectors thinned out by the draws that the rules say, in NumPy."""
    out = []
    for model, change in zip(models, changes_of(base, models), strict=True):
        chances = chances_of(change)
        own = references.generator_seed(seed, digest(model).hexdigest(), 0, name)
        out.append(np.where(references.kept(own, chances), change / chances, 0))
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("algorithm", "combine"),
    [("dare-linear", references.linear), ("dare-ties", references.elected)],
)
def test_dare_drops_what_the_counter_generator_says(shape, algorithm, combine):
    """MERGE-6, MERGE-15."""
    base, models = tensors(shape, 3)
    plain, _ = arrays(base, models)
    changes = dropped(base, models, lambda change: np.full_like(change, 0.6))
    wanted = combine(plain, changes, [1, 2, 0.5], 0.9)
    params = {"density": "0.6", "weights": "1,2,0.5", "scale": "0.9"}
    assert_close(merged(algorithm, base, models, seed=3, name="w", **params), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("algorithm", "combine"), [("della-linear", references.linear), ("della", references.elected)]
)
def test_della_drops_small_elements_of_a_row_more_often(shape, algorithm, combine):
    """MERGE-6, MERGE-16."""
    base, models = tensors(shape, 3)
    plain, _ = arrays(base, models)
    changes = dropped(base, models, lambda one: references.keep_chances(one, 0.6, 0.3))
    wanted = combine(plain, changes, [1, 2, 0.5], 0.9)
    params = {"density": "0.6", "epsilon": "0.3", "weights": "1,2,0.5", "scale": "0.9"}
    assert_close(merged(algorithm, base, models, seed=3, name="w", **params), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("algorithm", "combine"),
    [("breadcrumbs", references.linear), ("breadcrumbs-ties", references.elected)],
)
def test_breadcrumbs_leave_out_outliers_and_trifles(shape, algorithm, combine):
    """MERGE-7, MERGE-17."""
    base, models = tensors(shape, 3)
    plain, _ = arrays(base, models)
    outliers, count = base.numel() * 5 // 100, max(1, base.numel() * 6 // 10)
    changes = [references.banded(one, outliers, count) for one in changes_of(base, models)]
    wanted = combine(plain, changes, [1, 2, 0.5], 0.9)
    params = {"density": "0.6", "gamma": "0.05", "weights": "1,2,0.5", "scale": "0.9"}
    assert_close(merged(algorithm, base, models, **params), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", ["0.1", "0.5", "0.99"])
@pytest.mark.parametrize("spread", [1e-4, 0.05, 3.0])
def test_slerp_goes_along_the_arc(shape, t, spread):
    """MERGE-12, MERGE-13: near, far, and nearly perpendicular."""
    base, models = tensors(shape, 2, spread=spread)
    _, (first, second) = arrays(base, models)
    found = merged("slerp", base, models, t=t)
    np.testing.assert_allclose(
        found.double().numpy(), references.slerp(first, second, float(t)), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock_goes_as_far_as_the_angle_says(shape, count):
    """MERGE-12, MERGE-14: task vectors with much in common, and some of their own."""
    base, models = tensors(shape, count, seed=1)
    models = [one + 0.1 for one in models]
    plain, found = arrays(base, models)
    wanted = references.model_stock(plain, found)
    assert_close(merged("model-stock", base, models), wanted)
