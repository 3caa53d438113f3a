import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kolm_build.store.local import LocalStore
from tests.store.packing import deliver, write_pack


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory where there is one: these tests flush to the disk all the time."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def store(place: Path) -> Iterator[LocalStore]:
    with LocalStore.open(place / "store") as opened:
        yield opened


@pytest.fixture
def wanted(store, place):
    return deliver(store, place)


@pytest.fixture
def pack(store, wanted, place):
    """A pack of a small delivery."""
    path = place / "x.kolmpack"
    write_pack(store, wanted, path)
    return path


@pytest.fixture
def other(place):
    """The store of somebody else, empty."""
    with LocalStore.open(place / "other") as opened:
        yield opened
