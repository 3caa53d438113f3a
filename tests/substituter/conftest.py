from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kolm_build.store.local import LocalStore
from tests.store.conftest import place, store
from tests.substituter.places import bucket_server

__all__ = ["place", "store"]


@pytest.fixture(scope="session")
def bucket_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of one S3 server for all tests."""
    with bucket_server(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def other(place: Path) -> Iterator[LocalStore]:
    """A second, empty store."""
    with LocalStore.open(place / "other") as opened:
        yield opened
