"""Cases whose answer is known without computing; spec/algorithms-merging.md."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.steps.combine import METHODS
from kolm_build.steps.merging.dare import drawn
from kolm_build.steps.merging.della import keep_chances
from kolm_build.steps.merging.model_stock import ratio
from tests.merging.groups import arithmetic, bits, merged, tensors

pytestmark = pytest.mark.usefixtures("portable")

PLAIN = {"density": "1", "gamma": "0"}
TASK_VECTORS = ["breadcrumbs", "dare-linear", "della-linear"]
ELECTED = ["breadcrumbs-ties", "dare-ties", "della"]
SYMMETRIC = sorted(set(METHODS) - {"slerp"})


def params_of(algorithm, **params):
    """Those of `params` that the algorithm has."""
    known = {
        "breadcrumbs": ("density", "gamma"),
        "breadcrumbs-ties": ("density", "gamma"),
        "dare-linear": ("density",),
        "dare-ties": ("density",),
        "della": ("density", "epsilon"),
        "della-linear": ("density", "epsilon"),
        "ties": ("density",),
    }
    return {name: params[name] for name in known.get(algorithm, ()) if name in params}


def odd_tensor():
    """Both zeros, subnormals, the largest and the smallest numbers, and plain ones."""
    return torch.tensor([0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, 1e-30, 1.0, -1.5, 0.1])


@pytest.mark.parametrize("algorithm", sorted(METHODS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_merged_with_itself_is_itself(algorithm, dtype):
    """MERGE-5: bit for bit, the signs of zeros too."""
    plain, _ = tensors((9, 10), 1)
    for base in (plain.to(dtype), odd_tensor().to(dtype)):
        wide = base.float()
        found = merged(algorithm, wide, [wide, wide])
        assert bits(found.to(dtype)) == bits(base)


@pytest.mark.parametrize("algorithm", sorted(METHODS))
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (1, 1, 1, 2)])
def test_tensors_of_any_shape_are_merged(algorithm, shape):
    """MERGE-7, MERGE-12: a number, nothing at all, four dimensions."""
    base, models = torch.full(shape, 0.5), [torch.full(shape, 0.75), torch.full(shape, 1.0)]
    found = merged(algorithm, base, models)
    assert found.shape == base.shape
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("algorithm", ["soup", "model-stock", "slerp"])
def test_equal_models_give_their_tensor_whatever_the_base(algorithm):
    """MERGE-8, MERGE-13, MERGE-14: model stock's angle is 0, and so its t is 1."""
    base, (model,) = tensors((16, 33), 1)
    found = merged(algorithm, base, [model, model])
    torch.testing.assert_close(found, model, rtol=3e-7, atol=0)
    if algorithm != "model-stock":
        assert bits(found) == bits(model)


def test_a_soup_of_one_is_that_model():
    """MERGE-8."""
    base, (model,) = tensors((5, 6), 1)
    assert bits(merged("soup", base, [model], weights="0.3")) == bits(model)


@pytest.mark.parametrize("algorithm", TASK_VECTORS)
def test_nothing_dropped_is_task_arithmetic(algorithm):
    """MERGE-15, MERGE-16, MERGE-17: bit for bit."""
    base, models = tensors((16, 33), 3)
    given_weights = {"weights": "0.5,-1,2", "scale": "0.7"}
    wanted = merged("task-arithmetic", base, models, **given_weights)
    found = merged(algorithm, base, models, **params_of(algorithm, **PLAIN), **given_weights)
    assert bits(found) == bits(wanted)


@pytest.mark.parametrize("algorithm", ELECTED)
def test_nothing_dropped_is_ties_without_trimming(algorithm):
    """MERGE-15, MERGE-16, MERGE-17: bit for bit."""
    base, models = tensors((16, 33), 3)
    wanted = merged("ties", base, models, density="1")
    assert bits(merged(algorithm, base, models, **params_of(algorithm, **PLAIN))) == bits(wanted)


@pytest.mark.parametrize("algorithm", ["task-arithmetic", "ties", *TASK_VECTORS, *ELECTED])
def test_a_scale_of_nothing_is_the_base(algorithm):
    """MERGE-5, MERGE-9."""
    base, models = tensors((4, 7), 2)
    assert bits(merged(algorithm, base, models, scale="0")) == bits(base)


def test_a_task_vector_added_and_taken_away_is_the_base():
    """MERGE-9: weights below 0 negate a task."""
    base, (model,) = tensors((4, 7), 1)
    assert bits(merged("task-arithmetic", base, [model, model], weights="1,-1")) == bits(base)


@pytest.mark.parametrize(("t", "end"), [("0", 0), ("1", 1), ("0.0", 0)])
def test_slerp_ends_are_the_models(t, end):
    """MERGE-13: bit for bit."""
    base, models = tensors((4, 7), 2)
    assert bits(merged("slerp", base, models, t=t)) == bits(models[end])


def test_slerp_of_opposite_parallel_or_no_directions_goes_along_the_line():
    """MERGE-13."""
    base, (model, _) = tensors((4, 7), 2)
    opposite = merged("slerp", base, [model, -model], t="0.25")
    torch.testing.assert_close(opposite, model / 2)
    parallel = merged("slerp", base, [model, model * 2], t="0.25")
    torch.testing.assert_close(parallel, model * 1.25)
    nothing = merged("slerp", base, [model, torch.zeros_like(model)], t="0.25")
    torch.testing.assert_close(nothing, model * 0.75)


def test_slerp_of_perpendicular_vectors_keeps_their_length():
    """MERGE-13: half-way along a quarter of a circle."""
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    found = merged("slerp", first, [first, second], t="0.5")
    assert found.tolist() == [0.7071067690849304, 0.7071067690849304]
    found = merged("slerp", first, [first, second], t="0.25")
    torch.testing.assert_close(found, torch.tensor([0.9238795, 0.3826834]))


def test_signs_are_elected_by_weight_and_not_by_number():
    """MERGE-10, MERGE-11: worked by hand, three models, six elements."""
    base = torch.zeros(6)
    models = [
        torch.tensor([+1.0, +5.0, +1.0, +2.0, 0.0, -0.0]),
        torch.tensor([+2.0, -1.0, -1.0, -2.0, 0.0, -3.0]),
        torch.tensor([+6.0, -1.0, +3.0, +0.0, 0.0, -1.0]),
    ]
    # all agree; the one of 5 outweighs two of 1; -1 is outvoted; they cancel; nobody moved;
    # a model that did not move takes no part in the mean
    found = merged("ties", base, models, density="1")
    assert found.tolist() == [3.0, 5.0, 2.0, 0.0, 0.0, -2.0]
    # with the second's weight 6 the second element is -1: (6 * -1 + -1) / 7
    found = merged("ties", base, models, density="1", weights="1,6,1")
    assert found[1] == -1.0


@pytest.mark.parametrize(
    ("cosine", "models", "wanted"),
    [(1, 2, 1), (1, 7, 1), (0, 2, 0), (-0.5, 2, 0), (-1, 2, 0), (0.5, 2, 2 / 3), (0.5, 3, 0.75)],
)
def test_model_stock_ratios_of_known_angles(cosine, models, wanted):
    """MERGE-14: the same direction, a right angle, opposed, 60 degrees."""
    assert ratio(cosine, models) == pytest.approx(wanted, abs=1e-15)


def test_model_stock_of_perpendicular_or_opposed_task_vectors_is_the_base():
    """MERGE-14: bit for bit."""
    base = torch.tensor([1.0, 1.0, -0.0])
    step = torch.tensor([1.0, 0.0, 0.0])
    other = torch.tensor([0.0, 1.0, 0.0])
    assert bits(merged("model-stock", base, [base + step, base + other])) == bits(base)
    assert bits(merged("model-stock", base, [base + step, base - step])) == bits(base)


def test_model_stock_at_sixty_degrees():
    """MERGE-14: t = 2/3; worked by hand."""
    models = [torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0**0.5])]
    found = merged("model-stock", torch.zeros(2), models)
    torch.testing.assert_close(found, torch.tensor([1.0, 3.0**0.5 / 3]))


@settings(max_examples=40)
@given(
    algorithm=st.sampled_from(SYMMETRIC),
    order=st.permutations(range(4)),
    seed=st.integers(0, 2**16),
    twice=st.booleans(),
)
def test_the_order_of_models_changes_no_bit(algorithm, order, seed, twice):
    """MERGE-4: weights move with their models; two models may be the same one."""
    base, models = tensors((6, 11), 4, seed=seed)
    if twice:
        models[2] = models[0]
    weights = ["1", "0.25", "3", "0.5"]
    has_weights = {} if algorithm == "model-stock" else {"weights": ",".join(weights)}
    moved = (
        {} if algorithm == "model-stock" else {"weights": ",".join(weights[one] for one in order)}
    )
    wanted = merged(algorithm, base, models, seed=seed, **has_weights)
    found = merged(algorithm, base, [models[one] for one in order], seed=seed, **moved)
    assert bits(found) == bits(wanted)


def test_slerp_the_other_way_round_is_the_same():
    """MERGE-4: t of (a, b) is 1 - t of (b, a)."""
    base, (one, other) = tensors((6, 11), 2, spread=1.0)
    found = merged("slerp", base, [one, other], t="0.3")
    assert bits(merged("slerp", base, [other, one], t="0.7")) == bits(found)


@pytest.mark.parametrize("algorithm", ["dare-linear", "dare-ties", "della", "della-linear"])
def test_draws_depend_on_the_seed_and_the_name(algorithm):
    """MERGE-6."""
    base, models = tensors((20, 20), 2)
    first = merged(algorithm, base, models, seed=1)
    assert bits(merged(algorithm, base, models, seed=1)) == bits(first)
    assert bits(merged(algorithm, base, models, seed=2)) != bits(first)
    assert bits(merged(algorithm, base, models, seed=1, name="another")) != bits(first)


def test_two_copies_of_a_model_are_thinned_out_apart():
    """MERGE-6: equal bytes draw by their number among them."""
    base, (model,) = tensors((50, 50), 1)
    once = merged("dare-linear", base, [model]) - base
    twice = merged("dare-linear", base, [model, model], scale="0.5") - base
    assert not torch.equal(once, twice)
    both = (twice != 0).float().mean()
    assert 0.70 < both < 0.80  # 1 - 0.5 * 0.5


def test_dare_keeps_its_share_and_its_mean():
    """MERGE-15: of a million elements the density, within five standard deviations."""
    change = torch.ones(1000, 1000)
    with arithmetic():
        kept = drawn(change, Fraction(3, 10), torch.Generator().manual_seed(5))
    assert abs(int(kept.sum()) / kept.numel() - 0.3) < 5 * (0.3 * 0.7 / 1e6) ** 0.5


def test_della_ranks_a_row_and_not_the_matrix():
    """MERGE-16: worked by hand; equal magnitudes are ranked by place."""
    change = torch.tensor([[1.0, -4.0, 2.0, 2.0], [100.0, 300.0, -200.0, 0.0]])
    with arithmetic():
        found = keep_chances(change, Fraction(1, 2), Fraction(2, 5))
    wanted = torch.tensor([[0.4, 0.7, 0.6, 0.5], [0.5, 0.7, 0.6, 0.4]])
    torch.testing.assert_close(found, wanted)
