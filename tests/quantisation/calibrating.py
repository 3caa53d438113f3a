"""Tiny networks and what they are calibrated with."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

import torch

from kolm_build.core.quantisation import scheme_of
from kolm_build.numerics import guard
from kolm_build.runtime.loading import load
from kolm_build.steps.quantisation.calibration import walk
from kolm_build.steps.quantisation.rounding import Grids
from tests.support.models import tiny_llama


@functools.cache
def tiny_network():
    """The tiny example's network; no test changes it."""
    return load(tiny_llama(Path(tempfile.mkdtemp()) / "model")).network


@functools.cache
def uneven_network():
    """The same with some channels of its norms ten times as large; no test changes it."""
    network = copy.deepcopy(tiny_network())
    for name, tensor in network.named_parameters():
        if "layernorm" in name:
            tensor.data[::31] *= 10
    return network


def token_rows(*, rows=8, length=40, seed=0):
    """Rows of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        tuple(torch.randint(4, 200, (length,), generator=generator).tolist()) for _ in range(rows)
    )


def linear_layers(network):
    """The linear layers but for the head, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def grids_of(network, scheme="w4a16", **dtypes):
    """Every linear layer but the head, rounded as `scheme` says."""
    found = scheme_of(scheme)
    return Grids(
        by_layer={
            name: found.grid(layer.in_features) for name, layer in linear_layers(network).items()
        },
        **dtypes,
    )


def first_block(network, rows=None):
    """The first decoder layer with its inputs."""
    return next(iter(walk(network, rows or token_rows())))


def portable():
    """The class portable-1, for the time of a block."""
    return guard.activate()
