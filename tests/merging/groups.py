"""Tensors to merge, and merging them as a step of portable-1 does."""

from __future__ import annotations

from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import torch
from blake3 import blake3

from kolm_build.core.fields import Fields
from kolm_build.core.numerics import Numerics
from kolm_build.numerics.apply import applied
from kolm_build.numerics.state import payload
from kolm_build.steps.combine import METHODS
from kolm_build.steps.merging.group import Group, Member, in_canonical_order

NAME = "model.layers.0.mlp.up_proj.weight"


def tensors(shape, count, *, seed=0, spread=0.05):
    """A random base and `count` tensors near it, float32."""
    random = np.random.default_rng(seed)
    base = random.standard_normal(shape).astype(np.float32)
    made = [base + spread * random.standard_normal(shape).astype(np.float32) for _ in range(count)]
    return torch.from_numpy(base), [torch.from_numpy(one) for one in made]


def digest(tensor):
    return blake3(payload(tensor))


def group(base, models, weights, *, seed=0, name=NAME):
    members = [
        Member(read=one.clone, weight=weight, digest=digest(one).digest())
        for one, weight in zip(models, weights, strict=True)
    ]
    return Group(name=name, base=base.clone, members=in_canonical_order(members), seed=seed)


INSIDE: list[bool] = []
"""Whether the fixture `portable` applies the class already: to begin it costs more than a merge."""


def arithmetic():
    return nullcontext() if INSIDE else applied(Numerics(cls="portable-1"))


def merged(algorithm, base, models, *, seed=0, name=NAME, **params):
    """What `algorithm` makes of the tensors, in the class portable-1, guard and all."""
    fields = Fields(params)
    method = METHODS[algorithm](fields, len(models))
    fields.done()
    with arithmetic():
        return method.merge(group(base, models, method.weights, seed=seed, name=name))


def weights_of(text, models):
    numbers = [float(Fraction(part)) for part in text.split(",")]
    return numbers * models if len(numbers) == 1 else numbers


def bits(tensor):
    return bytes(payload(tensor))
