"""What a server makes of sums, against references of the tests' own (FED-70 to FED-91)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core.federated.plan import FACTORING, METHODS
from kolm_build.steps.federated._factoring import factored, stacked
from kolm_build.steps.federated._ordered import orthogonal, product, singular_values, total
from kolm_build.steps.federated._server import RULES, Sums, Turn
from kolm_build.steps.federated._tensors import AdapterFolder, ServerState
from tests.federated.parties import plan

NAME = "w"
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def turn(method, start, mean, *, share=None, control=None, state=None, **changes):
    return Turn(
        plan=plan(method, **changes),
        start={NAME: start},
        state=state or ServerState(round=0, arrays={}),
        sums=Sums(
            mean={NAME: mean},
            share={NAME: mean if share is None else share},
            control={} if control is None else {NAME: control},
        ),
    )


def run(method, rounds, *, controls=None, **changes):
    """The adapter and memory after `rounds`, each a mean."""
    x, state = np.zeros(5), ServerState(round=0, arrays={})
    for at, mean in enumerate(rounds):
        control = None if controls is None else controls[at]
        one = turn(method, x, mean, state=state, control=control, **changes)
        made, memory = RULES[method](one)
        x, state = made[NAME], ServerState(round=at + 1, arrays=memory)
    return x, {name.removesuffix(f".{NAME}"): one for name, one in state.arrays.items()}


ROUNDS = [drawn(seed, 5) for seed in range(4)]


def test_every_averaging_method_has_a_rule():
    assert RULES.keys() == set(METHODS) - set(FACTORING)


def test_averaging_adds_the_mean():
    """FED-80."""
    x, memory = run("fed-avg", ROUNDS)
    assert np.allclose(x, sum(ROUNDS), rtol=1e-12)
    assert memory == {}
    assert np.array_equal(run("fed-avg", ROUNDS, server_rate="0")[0], np.zeros(5))


def test_momentum_is_a_geometric_sum():
    """FED-81; without momentum it is averaging, bit for bit."""
    x, _ = run("fed-avgm", ROUNDS, beta1="0.5", server_rate="2")
    wanted = sum(2 * 0.5 ** (later - at) * ROUNDS[at] for at in range(4) for later in range(at, 4))
    assert np.allclose(x, wanted, rtol=1e-12)
    assert np.array_equal(run("fed-avgm", ROUNDS, beta1="0")[0], run("fed-avg", ROUNDS)[0])


@pytest.mark.parametrize("method", ["fed-adam", "fed-yogi", "fed-adagrad"])
def test_adaptive_servers_follow_algorithm_2(method):
    """FED-82: arXiv:2003.00295, worked out number by number."""
    x = m = np.zeros(5)
    v = np.full(5, 0.01**2)
    for d in ROUNDS:
        m = 0.8 * m + 0.2 * d
        square = d**2
        if method == "fed-adam":
            v = 0.95 * v + 0.05 * square
        elif method == "fed-yogi":
            v = v - 0.05 * square * np.sign(v - square)
        else:
            v = v + square
        x = x + 0.3 * m / (np.sqrt(v) + 0.01)
    made, memory = run(method, ROUNDS, beta1="0.8", beta2="0.95", tau="0.01", server_rate="0.3")
    assert np.allclose(made, x, rtol=1e-12)
    assert np.allclose(memory["first"], m, rtol=1e-12)
    assert np.allclose(memory["second"], v, rtol=1e-12)


def test_scaffold_adds_up_the_changes_of_control_variates():
    """FED-83."""
    controls = [drawn(seed, 5) for seed in range(10, 14)]
    x, memory = run("scaffold", ROUNDS, controls=controls)
    assert np.array_equal(x, run("fed-avg", ROUNDS)[0])
    assert np.allclose(memory["control"], sum(controls), rtol=1e-12)


def test_dynamic_regularisation_keeps_its_drift():
    """FED-84: arXiv:2111.04263, algorithm 1, with a site away in every round."""
    x = h = np.zeros(5)
    state = ServerState(round=0, arrays={})
    made = np.zeros(5)
    for d in ROUNDS:
        h = h - 0.1 * (d / 3)
        x = x + d - h / 0.1
        one = turn("fed-dyn", made, d, share=d / 3, mu="0.1", state=state)
        arrays, memory = RULES["fed-dyn"](one)
        made, state = arrays[NAME], ServerState(round=1, arrays=memory)
    assert np.allclose(made, x, rtol=1e-12)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("fed-prox", {"mu": "0.5"}),
        ("ffa-lora", {}),
        ("dp-fed-avg", {"weight": "equal", "noise_multiplier": "1"}),
    ],
)
def test_methods_that_differ_at_the_sites_average_at_the_server(method, changes):
    """FED-80: bit for bit."""
    assert np.array_equal(run(method, ROUNDS, **changes)[0], run("fed-avg", ROUNDS)[0])


@pytest.mark.parametrize("method", ["fed-adam", "fed-yogi", "fed-adagrad"])
def test_of_updates_that_are_small_beside_tau_an_adaptive_server_averages(method):
    """FED-82: the root of the second moment stays tau, so with a rate of 2 tau it is FedAvg."""
    small = [one * 1e-5 for one in ROUNDS]
    made, _ = run(method, small, beta1="0", beta2="1", tau="1", server_rate="2")
    assert np.allclose(made, run("fed-avg", small)[0], rtol=1e-6, atol=0)


def test_where_no_site_moves_a_dynamic_server_rests():
    """FED-84: and where all are there and the drift is new, a mean is taken twice."""
    rested, memory = run("fed-dyn", [np.zeros(5)] * 3, mu="0.5")
    assert not rested.any()
    assert not memory["drift"].any()
    made, memory = run("fed-dyn", ROUNDS[:1], mu="0.5")
    assert np.allclose(made, 2 * ROUNDS[0], rtol=1e-12)
    assert np.allclose(memory["drift"], -0.5 * ROUNDS[0], rtol=1e-12)


def test_what_a_step_does_not_name_stays():
    """FED-80: of FFA-LoRA only B crosses."""
    one = Turn(
        plan=plan("ffa-lora"),
        start={"a": np.ones(2), "b": np.ones(2)},
        state=ServerState(round=0, arrays={}),
        sums=Sums(mean={"b": np.ones(2)}, share={}, control={}),
    )
    made, _ = RULES["ffa-lora"](one)
    assert made["a"].tolist() == [1, 1]
    assert made["b"].tolist() == [2, 2]


# Linear algebra in order
@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_ordered_products_and_sums_are_products_and_sums(seed, rows, inner, columns):
    """FED-70."""
    left, right = drawn(seed, rows, inner), drawn(seed + 1, inner, columns)
    assert np.allclose(product(left, right), left @ right, atol=1e-12)
    assert np.allclose(total(left), left.sum(axis=0), atol=1e-12)


def test_an_ordered_sum_is_taken_by_halves():
    """FED-70: in any other order these numbers give another sum."""
    values = np.array([1e16, 1.0, -1e16, 1.0, 1.0])
    padded = [*values, 0, 0, 0]
    while len(padded) > 1:
        half = len(padded) // 2
        padded = [padded[at] + padded[at + half] for at in range(half)]
    assert total(values) == padded[0]


def test_an_ordered_product_adds_column_by_column_without_fusing():
    """FED-70."""
    left, right = drawn(1, 3, 40), drawn(2, 40, 3)
    wanted = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            for k in range(40):
                wanted[i, j] = wanted[i, j] + float(left[i, k]) * float(right[k, j])
    assert np.array_equal(product(left, right), wanted)


@given(SEEDS, st.integers(1, 12), st.integers(1, 6))
def test_orthogonal_factors_give_the_matrix(seed, rows, columns):
    """FED-70: of any matrix, those with columns that add nothing too."""
    matrix = drawn(seed, rows, columns)
    if columns > 1:
        matrix[:, -1] = matrix[:, 0]
    q, r = orthogonal(matrix)
    assert np.allclose(q @ r, matrix, atol=1e-10)
    gram = q.T @ q
    assert np.allclose(gram, np.diag(np.round(np.diag(gram))), atol=1e-9)


@given(SEEDS, st.integers(1, 9))
def test_singular_values_are_lapacks(seed, size):
    """FED-91."""
    matrix = drawn(seed, size, size)
    u, s, v = singular_values(matrix)
    assert np.allclose((u * s) @ v.T, matrix, atol=1e-10)
    assert np.allclose(s, np.linalg.svd(matrix, compute_uv=False), atol=1e-10)
    assert np.allclose(v.T @ v, np.eye(size), atol=1e-10)
    assert all(s[:-1] >= s[1:])


@pytest.mark.parametrize("size", [1, 4, 5])
def test_singular_values_of_nothing_are_nothing(size):
    u, s, _ = singular_values(np.zeros((size, size)))
    assert not s.any()
    assert not u.any()


# Sums of products

A, B = "m.lora_A.weight", "m.lora_B.weight"


def adapter(seed, *, rank=2, alpha=4):
    arrays = {A: drawn(seed, rank, 6), B: drawn(seed + 1, 7, rank)}
    return AdapterFolder(arrays=arrays, config={"r": rank, "lora_alpha": alpha, "x": True})


def change(one):
    return one.arrays[B] @ one.arrays[A] * (one.alpha / one.rank)


def mean_of_products(adapters, weights):
    return sum(weight * change(one) for one, weight in zip(adapters, weights, strict=True)) / sum(
        weights
    )


THREE, WEIGHTS = [adapter(1), adapter(3), adapter(5)], [2, 3, 5]


def test_stacked_factors_give_the_mean_of_the_products():
    """FED-90; ranks and scales may differ."""
    for adapters in (THREE, [adapter(1, rank=1, alpha=3), adapter(3, rank=4), adapter(5)]):
        made = stacked(adapters, WEIGHTS)
        assert made.rank == sum(one.rank for one in adapters)
        assert made.config["x"] is True
        assert np.allclose(change(made), mean_of_products(adapters, WEIGHTS), atol=1e-12)


def test_the_mean_of_the_factors_is_another_change():
    """FED-90: averaging A and B apart is not averaging B A."""
    whole = sum(WEIGHTS)
    means = {
        name: sum(w * one.arrays[name] for one, w in zip(THREE, WEIGHTS, strict=True)) / whole
        for name in (A, B)
    }
    apart = means[B] @ means[A] * 2
    exact = mean_of_products(THREE, WEIGHTS)
    assert np.abs(apart - exact).max() > 0.1 * np.abs(exact).max()


def test_with_one_a_the_mean_of_b_is_exact():
    """FED-61, FED-80: why FFA-LoRA freezes A."""
    down = drawn(9, 2, 6)
    frozen = [AdapterFolder(arrays={A: down, B: one.arrays[B]}, config=one.config) for one in THREE]
    mean = sum(w * one.arrays[B] for one, w in zip(frozen, WEIGHTS, strict=True)) / sum(WEIGHTS)
    assert np.allclose(mean @ down * 2, mean_of_products(frozen, WEIGHTS), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_factored_again_it_is_the_nearest_of_its_rank(rank):
    """FED-91: Eckart and Young; LAPACK's singular values say how near that is."""
    like = adapter(7, rank=rank, alpha=3)
    made = factored(THREE, WEIGHTS, like)
    exact = mean_of_products(THREE, WEIGHTS)
    u, s, v = np.linalg.svd(exact)
    nearest = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert np.allclose(change(made), nearest, atol=1e-9)
    assert made.config == like.config


def test_a_rank_that_is_more_than_there_is_ends_in_zeros():
    """FED-91."""
    made = factored([adapter(1)], [1], adapter(7, rank=6))
    assert np.allclose(change(made), change(adapter(1)), atol=1e-9)
    assert not made.arrays[B][:, 2:].any()
    assert not made.arrays[A][2:].any()


def test_factoring_an_adapter_that_changes_nothing_gives_one_that_changes_nothing():
    """FED-91: a round's B begins with zeros."""
    nothing = AdapterFolder(
        arrays={A: drawn(1, 2, 6), B: np.zeros((7, 2))}, config=adapter(1).config
    )
    made = factored([nothing, nothing], [1, 2], nothing)
    assert not change(made).any()
