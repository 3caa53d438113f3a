"""PEFT's merges of task vectors as the oracle, where its formula is the paper's."""

from __future__ import annotations

import pytest
import torch

from tests.merging import references
from tests.merging.groups import digest, merged, tensors

pytestmark = pytest.mark.filterwarnings("ignore:The density")

SHAPE = (33, 65)


@pytest.fixture
def peft():
    return pytest.importorskip("peft.utils.merge_utils")


def task_vectors(base, models):
    return [one - base for one in models]


def assert_same(found, base, change):
    torch.testing.assert_close(found, base + change, rtol=0, atol=1e-6)


def test_task_arithmetic_is_pefts(peft):
    """MERGE-9."""
    base, models = tensors(SHAPE, 3)
    weights = [0.5, -1.0, 2.0]
    wanted = peft.task_arithmetic(task_vectors(base, models), torch.tensor(weights))
    found = merged("task-arithmetic", base, models, weights="0.5,-1,2")
    assert_same(found, base, wanted)


@pytest.mark.parametrize("density", ["0.2", "0.5", "1"])
def test_ties_is_pefts(peft, density):
    """MERGE-7, MERGE-10, MERGE-11: equal weights; PEFT's others are not in the paper."""
    base, models = tensors(SHAPE, 4)
    wanted = peft.ties(task_vectors(base, models), torch.ones(4), float(density))
    assert_same(merged("ties", base, models, density=density), base, wanted)


@pytest.mark.parametrize("density", ["0.3", "0.9"])
def test_breadcrumbs_without_outliers_are_pefts_pruning(peft, density):
    """MERGE-17: gamma is 0."""
    base, models = tensors(SHAPE, 3)
    weights = torch.tensor([0.5, -1.0, 2.0])
    wanted = peft.magnitude_prune(task_vectors(base, models), weights, float(density))
    found = merged("breadcrumbs", base, models, density=density, gamma="0", weights="0.5,-1,2")
    assert_same(found, base, wanted)


@pytest.mark.parametrize(
    ("algorithm", "name", "weights"),
    [("dare-linear", "dare_linear", "0.5,-1,2"), ("dare-ties", "dare_ties", "1,1,1")],
)
def test_dare_is_pefts_on_the_same_draws(peft, monkeypatch, algorithm, name, weights):
    """MERGE-15: PEFT's own random numbers are replaced by ours, nothing else."""
    base, models = tensors(SHAPE, 3)
    keys = [digest(one).hexdigest() for one in models]
    kept = iter(
        references.kept(references.generator_seed(9, key, 0, "w"), references.np.full(SHAPE, 0.4))
        for key in keys
    )
    monkeypatch.setattr(
        peft.torch, "bernoulli", lambda wanted: torch.from_numpy(next(kept)).to(wanted.dtype)
    )
    numbers = torch.tensor([float(one) for one in weights.split(",")])
    wanted = getattr(peft, name)(task_vectors(base, models), numbers, 0.4)
    monkeypatch.undo()
    found = merged(algorithm, base, models, seed=9, name="w", density="0.4", weights=weights)
    assert_same(found, base, wanted)
