"""The compiled kernels are those of the sources beside them, or are refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch  # noqa: F401 -- the library finds it loaded

from kolm_build.core.digest import Sha256
from kolm_build.core.kernels import sources_digest
from kolm_build.errors import KernelsMissingError
from kolm_build.numerics import kernels

OTHER = 'extern "C" const char* kolm_sources() { return "sha256:%s"; }'


def compiled(folder: Path, source: str) -> Path:
    """A library made of `source`."""
    (folder / "other.cpp").write_text(source)
    made = folder / "other.so"
    subprocess.run(["c++", "-shared", "-fPIC", "-o", made, folder / "other.cpp"], check=True)
    return made


def test_the_installed_library_was_made_from_these_sources():
    """NUM-102."""
    assert kernels.load(kernels.LIBRARY).kolm_sources().decode() == str(kernels.sources())


def test_a_library_made_from_other_sources_is_refused(tmp_path):
    """NUM-102."""
    with pytest.raises(KernelsMissingError, match="other sources") as caught:
        kernels.load(compiled(tmp_path, OTHER % ("0" * 64)))
    assert caught.value.expected == str(kernels.sources())
    assert caught.value.actual == "sha256:" + "0" * 64


def test_a_library_that_does_not_say_its_sources_is_refused(tmp_path):
    """NUM-102."""
    with pytest.raises(KernelsMissingError, match="does not say"):
        kernels.load(compiled(tmp_path, "int nothing;"))


@pytest.mark.parametrize("name", ["nothing.so", "text.so"])
def test_what_is_no_library_is_refused_with_advice(tmp_path, name):
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(KernelsMissingError) as caught:
        kernels.load(tmp_path / name)
    assert "make kernels" in (caught.value.advice or "")


def test_the_digest_of_sources_is_what_sha256sum_says(tmp_path):
    """NUM-104."""
    folder = tmp_path / "csrc"
    shutil.copytree(kernels.SOURCES, folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*.*"))
    listing = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True)
    whole = subprocess.run(
        ["sha256sum"], input=listing.stdout, capture_output=True, check=True
    ).stdout.split()[0]
    assert str(kernels.sources()) == f"sha256:{whole.decode()}"


def test_each_file_and_each_name_is_in_the_digest_of_sources():
    """NUM-104."""
    one, other = Sha256.of_blob(b"1"), Sha256.of_blob(b"2")
    made = {
        sources_digest(files)
        for files in ({"a": one}, {"a": other}, {"b": one}, {"a": one, "b": one}, {})
    }
    assert len(made) == 5
