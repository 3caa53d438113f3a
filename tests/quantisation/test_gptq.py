"""GPTQ against its definition written again in binary64, and where it must be plain rounding."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from kolm_build.core.quantisation import Grid
from kolm_build.errors import InvalidDataError, NotFiniteError
from kolm_build.numerics.quantised import nearest, scales, values
from kolm_build.steps.quantisation import gptq
from kolm_build.steps.quantisation.gptq import Problem, Settings
from kolm_build.steps.quantisation.results import squared_outputs
from tests.quantisation.calibrating import grids_of, portable, tiny_network, token_rows

INT4 = Grid(kind="int", bits=4, group=8)
GRIDS = (
    INT4,
    Grid(kind="int", bits=4, group=8, symmetric=False),
    Grid(kind="int", bits=8),
    Grid(kind="fp8", bits=8),
    Grid(kind="nvfp4", bits=4, group=8),
    Grid(kind="mxfp4", bits=4, group=8),
)


def weights(rows, columns, seed=0):
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.standard_normal((rows, columns)).astype(np.float32))


def gram(columns, *, tokens=64, seed=1):
    """Inputs that go together, so that there is an error to make good."""
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((tokens, columns)) @ generator.standard_normal((columns,) * 2)
    return (mixed * generator.uniform(0.1, 3, columns)).T @ mixed


def hessian(columns, **options):
    matrix = gram(columns, **options)
    return matrix.T @ matrix / len(matrix)


def reference(weight, matrix, chosen, *, damping, order):
    """GPTQ's algorithm 1 for symmetric integers: no blocks, binary64, LAPACK's inverse."""
    left = weight.double().numpy().copy()
    steps = np.repeat(chosen.steps().double().numpy(), chosen.grid.group, axis=1)
    damped = matrix + float(damping) * np.mean(np.diag(matrix)) * np.eye(len(matrix))
    places = np.arange(len(matrix))
    if order == "static":
        places = np.argsort(-np.diag(matrix), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(places, places)])).T
    codes = np.zeros_like(left)
    for at, column in enumerate(places):
        codes[:, column] = np.clip(np.rint(left[:, column] / steps[:, column]), -8, 7)
        error = left[:, column] - codes[:, column] * steps[:, column]
        for later in range(at, len(places)):
            left[:, places[later]] -= error / factor[at, at] * factor[at, later]
    return codes


@pytest.mark.parametrize("order", ["none", "static"])
@pytest.mark.parametrize("columns", [8, 64, 200])
def test_the_codes_are_those_of_the_paper_s_algorithm(order, columns):
    """QUANT-75, QUANT-76."""
    weight, matrix = weights(16, columns), hessian(columns)
    chosen = scales(weight, INT4)
    settings = Settings(damping=Fraction(1, 100), act_order=order)
    found = Problem.of(matrix, settings).solve(weight, chosen)
    want = reference(weight, matrix, chosen, damping=settings.damping, order=order)
    same = (found.double().numpy() == want).all(axis=1)
    # Binary32 and binary64 may fall on two sides of a tie, and then part ways to the row's end.
    assert same.sum() >= 13
    assert (found != nearest(weight, chosen).codes).any()


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.kind}{grid.bits}{grid.symmetric}")
@pytest.mark.parametrize("order", ["none", "static"])
class TestLimits:
    """Where no column can make good for another, GPTQ is rounding to nearest."""

    def solved(self, weight, matrix, grid, order, damping=Fraction(1, 100)):
        problem = Problem.of(matrix, Settings(damping=damping, act_order=order))
        chosen = scales(weight, grid)
        return problem.solve(weight, chosen), nearest(weight, chosen).codes

    def test_inputs_that_do_not_go_together(self, grid, order):
        found, plain = self.solved(weights(6, 32), np.diag(np.arange(1.0, 33)), grid, order)
        assert torch.equal(found, plain)

    def test_inputs_that_are_all_zero(self, grid, order):
        found, plain = self.solved(weights(6, 32), np.zeros((32, 32)), grid, order)
        assert torch.equal(found, plain)

    def test_damping_that_drowns_the_hessian(self, grid, order):
        found, plain = self.solved(weights(6, 32), hessian(32), grid, order, Fraction(10**9))
        assert torch.equal(found, plain)

    def test_one_column(self, grid, order):
        one = Grid(kind="int", bits=8)
        found, plain = self.solved(weights(6, 1), np.ones((1, 1)), one, order)
        assert torch.equal(found, plain)

    def test_a_column_whose_inputs_are_zero_is_rounded_to_nearest(self, grid, order):
        """QUANT-73."""
        matrix = hessian(32)
        matrix[5] = matrix[:, 5] = 0
        found, plain = self.solved(weights(6, 32), matrix, grid, order)
        assert torch.equal(found[:, 5], plain[:, 5])
        assert not torch.equal(found, plain)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.kind}{grid.bits}{grid.symmetric}")
@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_worse_than_rounded_to_nearest(grid, seed):
    """QUANT-77."""
    weight, matrix = weights(40, 32, seed), hessian(32, seed=seed, tokens=4)
    problem = Problem.of(matrix, Settings(damping=Fraction(1, 10**6)))
    plain = nearest(weight, scales(weight, grid))
    found = problem.better_rows(weight, plain)
    loss = squared_outputs(weight - values(found), problem.gram)
    plain_loss = squared_outputs(weight - values(plain), problem.gram)
    assert bool((loss <= plain_loss).all())
    assert bool(loss.sum() < plain_loss.sum())


def test_a_row_that_the_method_would_harm_keeps_its_nearest_codes():
    """QUANT-77."""
    weight, matrix = weights(400, 8), hessian(8, tokens=64)
    problem = Problem.of(matrix, Settings())
    plain = nearest(weight, scales(weight, INT4))
    raw = problem.solve(weight, plain.scales)
    found = problem.better_rows(weight, plain).codes
    kept = (found == plain.codes).all(dim=1) & (raw != plain.codes).any(dim=1)
    assert bool(kept.any())
    assert torch.equal(found[~kept], raw[~kept])


def test_a_hessian_that_is_not_finite_is_refused_by_element():
    """QUANT-73."""
    matrix = np.eye(4)
    matrix[2, 1] = np.nan
    with pytest.raises(NotFiniteError, match="Hessian is not finite") as refusal:
        Problem.of(matrix, Settings())
    assert refusal.value.where == "[2, 1]"


def test_a_network_gets_better_layers_and_stays_as_it_was():
    network = tiny_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with portable():
        found = gptq.quantise(network, token_rows(), grids_of(network), Settings())
    assert set(found.quantised) == set(found.losses) == set(grids_of(network).by_layer)
    for loss in found.losses.values():
        assert 0 < loss.chosen < loss.nearest < loss.signal
    assert not found.changed
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_layer_that_no_row_reaches_is_refused():
    """QUANT-71."""
    network = tiny_network()
    grids = grids_of(network)
    more = {**grids.by_layer, "model.layers.1.mlp.expert_proj": INT4}
    with portable(), pytest.raises(InvalidDataError, match="never reached") as refusal:
        gptq.quantise(network, token_rows(), type(grids)(by_layer=more), Settings())
    assert refusal.value.where == "model.layers.1.mlp.expert_proj"
