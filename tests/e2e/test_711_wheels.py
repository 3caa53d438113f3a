"""`--wheels` and `--python`: environments that kolm does not run in."""

import json
import subprocess
import sys

import pytest

from tests.engine.wheels import line, pylock, wheel

LONE = """
version = 1
name = "words"

[environment]
distributions = ["alpha"]
"""


@pytest.fixture
def wheels(tmp_path):
    """A folder of two wheels, one of which needs the other."""
    folder = tmp_path / "wheels"
    return [
        wheel(folder, "alpha", "1.0", {"alpha/__init__.py": "A = 1\n"}, ["beta>=1"]),
        wheel(folder, "beta", "1.5", {"beta/__init__.py": "B = 2\n"}),
    ]


@pytest.fixture
def lone(project):
    """The words project with an environment that is not installed here."""
    text = project.read("kolm.toml").partition("[[step]]")
    project.write("kolm.toml", LONE + "".join(text[1:]))
    return project


def test_an_environment_is_locked_from_wheels_and_is_in_the_store(lone, wheels, tmp_path):
    """WHEEL-7, WHEEL-8: by either list, and as a virtual environment of the same wheels has it."""
    folder = str(tmp_path / "wheels")
    lone.write("list.txt", "".join(map(line, wheels)))
    lone.write("pylock.toml", pylock(*wheels))
    at = ("--find-links", folder, "--offline")
    lone.ok("lock", "--wheels", str(lone.root / "list.txt"), *at)
    locked = lone.read("kolm.lock")
    assert json.loads(lone.ok("env", "show", "--json").out)["tree"] is not None
    assert "cannot" not in lone.ok("build").err
    lone.ok("lock", "--check")
    lone.ok("lock", "--check", "--wheels", str(lone.root / "pylock.toml"), *at)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-index"]
    subprocess.run([*pip, *map(str, wheels)], check=True)
    lone.ok("lock", "--check", "--python", python)
    assert lone.ok("env", "diff", "--python", python).out == "what is installed is what is locked\n"
    assert lone.kolm("env", "diff").status == 1
    assert lone.read("kolm.lock") == locked


def test_another_machine_takes_the_locked_environment_from_the_wheels(lone, wheels, tmp_path):
    """WHEEL-8."""
    lone.write("list.txt", "".join(map(line, wheels)))
    source = ("--wheels", str(lone.root / "list.txt"), "--find-links", str(tmp_path / "wheels"))
    lone.ok("lock", *source)
    first = json.loads(lone.ok("env", "show", "--json").out)
    other = tmp_path / "other-store"
    assert lone.kolm("env", "add", "--store", str(other)).status == 1
    lone.ok("env", "add", "--offline", *source, "--store", str(other))
    again = json.loads(lone.ok("env", "show", "--json", "--store", str(other)).out)
    assert again == first
    assert "sound" in lone.ok("env", "check", "--store", str(other)).out
    newer = wheel(tmp_path / "wheels", "beta", "1.6", {"beta/__init__.py": "B = 3\n"})
    lone.write("list.txt", line(wheels[0]) + line(newer))
    refused = lone.kolm("env", "add", "--offline", *source, "--store", str(tmp_path / "third"))
    assert refused.status == 1
    assert "beta 1.5" in refused.err
    assert "beta 1.6" in refused.err


def test_what_is_refused_leaves_store_and_lock_as_they_were(lone, wheels, tmp_path):
    """WHEEL-4, WHEEL-9."""
    folder = tmp_path / "wheels"
    at = ("lock", "--wheels", str(lone.root / "list.txt"), "--find-links", str(folder), "--offline")
    cases = {
        "beta is required by alpha": line(wheels[0]),
        "is not here": line(wheels[0]) + line(wheels[1]).replace("1.5", "1.7"),
        "not the wheel that is listed": line(wheels[0]) + "beta==1.5 --hash=sha256:" + "0" * 64,
        "no SHA-256": line(wheels[0]) + "beta==1.5",
    }
    for reason, text in cases.items():
        lone.write("list.txt", text)
        refused = lone.kolm(*at)
        assert refused.status != 0
        assert reason in refused.err
        assert "list.txt" in refused.err
        assert not (lone.root / "kolm.lock").exists()
        assert lone.ok("env", "list").out == ""
        assert list((lone.store / "tmp").iterdir()) == []


def test_wheels_that_no_folder_has_are_fetched_by_pip(lone, wheels, tmp_path, monkeypatch):
    """WHEEL-4: by its own settings; what it cannot find by name, version and hash is not taken."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    lone.write("list.txt", "".join(map(line, wheels)))
    lone.ok("lock", "--wheels", str(lone.root / "list.txt"))
    assert "alpha" in lone.read("kolm.lock")
    lone.write("list.txt", line(wheels[0]) + "beta==1.5 --hash=sha256:" + "0" * 64)
    refused = lone.kolm("lock", "--check", "--wheels", str(lone.root / "list.txt"))
    assert refused.status == 1
    assert "could not be fetched" in refused.err
    assert "--find-links" in refused.err


def test_two_places_at_once_are_refused(lone):
    for options in (("--wheels", "x", "--python", "y"), ("--find-links", "x")):
        refused = lone.kolm("lock", *options)
        assert refused.status == 2
        assert "--" in refused.err
    refused = lone.kolm("lock", "--python", "/bin/true")
    assert refused.status == 1
    assert "not an interpreter" in refused.err
