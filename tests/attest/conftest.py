"""One tiny artifact for all tests of the folder, and the same one signed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kolm_build.attest.sign import sign_artifact
from tests.artifact import making
from tests.attest.helping import key


@pytest.fixture(scope="session")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny artifact; nobody may change it."""
    return making.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def signed(unsigned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny artifact signed by key 1; nobody may change it."""
    path = tmp_path_factory.mktemp("signed") / "tiny.kolm"
    sign_artifact(unsigned, path, key=key(1))
    return path
