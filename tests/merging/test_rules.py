"""Every method gives the bits of a second implementation that was written from the rules alone."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.steps.combine import METHODS
from tests.merging import independent
from tests.merging.groups import bits, merged

pytestmark = pytest.mark.usefixtures("portable")

SHAPES = st.sampled_from([(1,), (5,), (70,), (3, 4), (9, 65), (2, 3, 5), (4100,)])
SPARSITY = {"density": "0.37", "epsilon": "0.31", "gamma": "0.06"}
OWN = {
    "breadcrumbs": ("density", "gamma"),
    "breadcrumbs-ties": ("density", "gamma"),
    "dare-linear": ("density",),
    "dare-ties": ("density",),
    "della": ("density", "epsilon"),
    "della-linear": ("density", "epsilon"),
    "ties": ("density",),
}


@pytest.mark.parametrize("algorithm", sorted(METHODS))
@settings(max_examples=12)
@given(
    shape=SHAPES,
    seed=st.integers(0, 2**32),
    weights=st.lists(st.sampled_from(["0.1", "1", "0.7", "3"]), min_size=2, max_size=4),
    coarse=st.booleans(),
    twice=st.booleans(),
)
def test_the_bits_are_those_of_the_rules(algorithm, *, shape, seed, weights, coarse, twice):
    """MERGE-4 to MERGE-17: with ties, zeros, equal models and any weights."""
    random = np.random.default_rng(seed)
    draw = lambda: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    base = draw()
    models = [base + np.float32(0.1) * draw() + np.float32(0.03) for _ in weights]
    if coarse:  # few values: ties, and changes of exactly 0
        base = np.round(base * 4) / 4
        models = [np.round(one * 4) / 4 for one in models]
    if twice:
        models[-1] = models[0].copy()
    share = Fraction(weights[0]) / 3
    if algorithm == "slerp":
        models, params, fractions = models[:2], {"t": f"{float(share):.3f}"}, ()
        share = Fraction(params["t"])
        fractions = (1 - share, share)
    elif algorithm == "model-stock":
        params, fractions = {}, (Fraction(1),) * len(models)
    else:
        params, fractions = {"weights": ",".join(weights)}, [Fraction(one) for one in weights]
        if algorithm != "soup":
            params["scale"] = "0.9"
    params |= {key: SPARSITY[key] for key in OWN.get(algorithm, ())}
    found = merged(
        algorithm, torch.from_numpy(base), list(map(torch.from_numpy, models)), seed=seed, **params
    )
    wanted = independent.merged(
        algorithm,
        base,
        models,
        seed=seed,
        name="model.layers.0.mlp.up_proj.weight",
        weights=fractions,
        scale=Fraction("0.9"),
        **{key: Fraction(value) for key, value in SPARSITY.items()},
    )
    assert wanted.dtype == np.float32
    assert bits(found) == wanted.tobytes()
