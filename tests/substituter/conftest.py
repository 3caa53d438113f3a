from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kolm_build.store.local import LocalStore
from tests.store.conftest import place, store

__all__ = ["place", "store"]


@pytest.fixture
def other(place: Path) -> Iterator[LocalStore]:
    """A second, empty store."""
    with LocalStore.open(place / "other") as opened:
        yield opened
