"""A small project of scripts, built through the command line in a store of its own."""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from kolm_build.surfaces.cli.door import through_door
from kolm_build.surfaces.cli.parser import dispatch
from kolm_build.surfaces.terminal import Terminal

RECIPE = """\
version = 1
name = "words"

[environment]
distributions = ["blake3"]

[[step]]
name = "count"
step = "script"
inputs = {script = "path:./count.py", text = "path:./text.txt"}
params = {entry = "count.py"}

[[step]]
name = "top"
step = "script"
inputs = {script = "path:./top.py", counts = "count"}
params = {entry = "top.py", limit = 2}

[[step]]
name = "length"
step = "script"
inputs = {script = "path:./length.py", text = "path:./text.txt"}
params = {entry = "length.py"}
"""

COUNT = """\
import json


def run(inputs, out, params):
    words = (inputs["text"] / "text.txt").read_text().split()
    counts = {word: words.count(word) for word in sorted(set(words))}
    print("counted", len(counts), "words")
    (out / "counts.json").write_text(json.dumps(counts, sort_keys=True))
"""

TOP = """\
import json


def run(inputs, out, params):
    counts = json.loads((inputs["counts"] / "counts.json").read_text())
    top = sorted(counts, key=lambda word: (-counts[word], word))[: params["limit"]]
    (out / "top.txt").write_text("\\n".join(top))
"""

LENGTH = """\
def run(inputs, out, params):
    text = (inputs["text"] / "text.txt").read_text()
    (out / "length.txt").write_text(str(len(text)))
"""

FILES = {
    "kolm.toml": RECIPE,
    "count.py": COUNT,
    "top.py": TOP,
    "length.py": LENGTH,
    "text.txt": "a b a c b a\n",
}


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str

    def built(self) -> list[str]:
        """The nodes whose step ran."""
        lines = [line.split() for line in self.err.splitlines()]
        return [words[0] for words in lines if words[1:2] == ["built"]]


@dataclass(frozen=True)
class Project:
    """A project folder and the store it is built in."""

    root: Path
    store: Path

    def kolm(self, *argv: str) -> Answer:
        """`kolm` in this process, on this project."""
        out, err = io.StringIO(), io.StringIO()
        terminal = Terminal(out=out, err=err)
        with redirect_stdout(out):
            status = through_door(lambda: dispatch(argv, terminal), argv, terminal)
        return Answer(status, out.getvalue(), err.getvalue())

    def ok(self, *argv: str) -> Answer:
        """The same, which must end well."""
        answer = self.kolm(*argv)
        assert answer.status == 0, answer
        return answer

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def replace(self, name: str, old: str, new: str) -> None:
        assert old in self.read(name)
        self.write(name, self.read(name).replace(old, new))


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """A user without any settings, and a git that knows nobody."""
    for name in ("KEY", "TRUST", "STORE", "PASSPHRASE", "SUBSTITUTERS"):
        monkeypatch.delenv(f"KOLM_{name}", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / ".local/share"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    """A project of three scripts; the working folder is its own."""
    made = Project(root=tmp_path / "words", store=tmp_path / "store")
    made.root.mkdir()
    for name, text in FILES.items():
        made.write(name, text)
    monkeypatch.chdir(made.root)
    monkeypatch.setenv("KOLM_STORE", str(made.store))
    return made
