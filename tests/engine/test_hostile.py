"""Hostile steps in the real sandbox: every act of the table is stopped by what is meant to."""

from __future__ import annotations

import pytest

from kolm_build.engine.builder import SandboxBuilder, UnsafeOpenBuilder
from kolm_build.engine.sandbox import Surroundings
from tests.engine.hostile import ACTS, DONE, acts_here, attempt
from tests.engine.steps import SHAPES


def builder_of(kind, store, limits=None):
    return kind(store=store, steps=SHAPES, environments=lambda _: Surroundings(), limits=limits)


@pytest.mark.parametrize("act", acts_here(), ids=lambda act: act.name)
def test_a_hostile_act_is_stopped(act, store, tmp_path):
    """BOX-14 to BOX-24: each act of the table ends as the table says."""
    assert attempt(act, builder_of(SandboxBuilder, store, act.limits), store, tmp_path) in act.met


@pytest.mark.parametrize(
    "name",
    [
        "read a file outside its closure",
        "write to a folder of the machine",
        "reach a server of the machine",
        "reach an abstract AF_UNIX socket of the machine",
        "signal a process of the machine",
        "see other processes",
        "change an input",
    ],
)
def test_without_the_sandbox_the_same_act_succeeds(name, store, tmp_path):
    """So that the table cannot pass because its acts do nothing."""
    act = next(act for act in ACTS if act.name == name)
    assert attempt(act, builder_of(UnsafeOpenBuilder, store), store, tmp_path) == DONE
