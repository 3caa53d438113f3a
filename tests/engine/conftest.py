from __future__ import annotations

import pytest

from kolm_build.engine.builder import SandboxBuilder
from kolm_build.engine.sandbox import Surroundings
from kolm_build.store.local import LocalStore
from tests.engine.steps import SHAPES


@pytest.fixture
def store(tmp_path):
    with LocalStore.open(tmp_path / "store") as store:
        yield store


@pytest.fixture
def builder(store):
    return SandboxBuilder(store=store, steps=SHAPES, environments=lambda _: Surroundings())
