"""`kolm copy`, and builds that copy instead of building."""

import json
import shutil

import pytest

from tests.substituter.serving import Faults, serving

FIXED = "environment"


@pytest.fixture
def key(project):
    """The user's own key, which they trust."""
    project.ok("key", "new", "--unencrypted")
    home = project.root.parent / "home"
    project.ok("key", "trust", str(home / ".config/kolm/key.pem"), "--name", "me")


@pytest.fixture
def built(project, key):
    project.ok("lock")
    project.ok("build")
    return project


def elsewhere(project, monkeypatch, name="other"):
    """The same project with an empty store."""
    store = project.root.parent / name
    monkeypatch.setenv("KOLM_STORE", str(store))
    return store


def test_what_was_built_is_copied_and_not_built_elsewhere(built, monkeypatch, tmp_path):
    place = f"file://{tmp_path / 'cache'}"
    first = built.ok("build", "--json").out
    answer = built.ok("copy", "--to", place)
    assert "copied" in answer.err
    assert built.ok("copy", "--to", place).err.endswith("nothing to copy\n")
    elsewhere(built, monkeypatch)
    answer = built.ok("build", "--substituter", place)
    print(answer.err, file=__import__("sys").stderr)
    assert answer.built() == []
    assert f"from {place}" in answer.err
    assert json.loads(built.ok("build", "--json").out.splitlines()[-1]) == json.loads(
        first.splitlines()[-1]
    )
