"""A federation on one machine: a folder for each party, a process for each site (FED-100 on).

For demonstrations and tests. Each party has a project, a store and a key of its own; a site's
process sees no other party's folder, can write to its own alone, and has no network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import IO, Self

import kolm_build
from kolm_build.attest.keys import PublicKey, create
from kolm_build.core.bounded import Params, integer, params
from kolm_build.core.federated.plan import FederationPlan
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_label
from kolm_build.core.toml import read_toml
from kolm_build.core.toml_writer import render
from kolm_build.engine.sandbox import find_sandbox
from kolm_build.errors import InvalidRecordError, RoundError, SubmissionError
from kolm_build.surfaces.federated.settings import FILE as SETTINGS
from kolm_build.surfaces.federated.wire import answered, read_message, write_message

FILE = "federation.toml"
KEY, STORE, PROJECT, MEMORY = "key.pem", "store", "project", "memory"
AGGREGATOR = "aggregator"
PATIENCE_S = 3600
"""How long a site may take to answer: its training is in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """What a federation.toml says.

    Attributes:
        root: The folder that it is in.
        plan: What the sites agree on.
        rounds: How many rounds.
        evaluate: How a site judges a model on its own rows.
        files: Party to the files and folders, relative to `root`, that make up its project.
    """

    root: Path
    plan: FederationPlan
    rounds: int
    evaluate: Params
    files: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, folder: Path, changes: Mapping[str, object]) -> Self:
        """The federation in `folder`.

        Args:
            folder: Where federation.toml is.
            changes: Values of the plan to use in place of those in the file.

        Raises:
            InvalidRecordError: It is not as described.
        """
        path = folder / FILE
        if not path.is_file():
            raise InvalidRecordError(
                "no federation here",
                file=str(path),
                advice="Give the folder of a federation.toml, such as examples/federated/tiny.",
            )
        try:
            return cls._parse(folder, read_toml(path.read_text("utf-8")), changes)
        except InvalidRecordError as error:
            raise error.in_file(str(path)) from None

    @classmethod
    def _parse(cls, root: Path, value: object, changes: Mapping[str, object]) -> Self:
        fields = Fields(value)
        fields.version(1)
        planned = {"v": 1, **fields.table("plan"), **changes}
        made = cls(
            root=root,
            plan=fields.record("plan", lambda _: FederationPlan.from_value(planned)),
            rounds=integer(fields, "rounds", least=1, most=1 << 16, default=3),
            evaluate=params(fields, "evaluate"),
            files={
                AGGREGATOR: fields.records(AGGREGATOR, _text),
                **fields.record("sites", _sites),
            },
        )
        fields.done()
        return made

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites' names, sorted."""
        return tuple(sorted(name for name in self.files if name != AGGREGATOR))

    def lay_out(self, folder: Path) -> Mapping[str, PublicKey]:
        """Make the parties' folders below `folder`, as far as they are not there; their keys."""
        keys = {}
        for name, sources in self.files.items():
            own = folder / name
            if not (own / PROJECT).exists():
                (own / PROJECT).mkdir(parents=True)
                (own / "tmp").mkdir()
                _copy([self.root / source for source in sources], own / PROJECT)
            if not (own / KEY).exists():
                public = create(own / KEY, passphrase=None, unencrypted=True)
                (own / f"{KEY}.pub").write_text(f"{public}\n")
            keys[name] = PublicKey.parse((own / f"{KEY}.pub").read_text().strip())
        for name in self.sites:
            (folder / name / SETTINGS).write_text(self._settings(name, keys), "utf-8")
        return keys

    def _settings(self, name: str, keys: Mapping[str, PublicKey]) -> str:
        table = {
            "version": 1,
            "name": name,
            "aggregator": str(keys[AGGREGATOR]),
            "peers": {one: str(keys[one]) for one in self.sites},
            "evaluate": dict(self.evaluate),
        }
        return render(table)


def _text(value: object) -> str:
    if type(value) is not str:
        raise InvalidRecordError("not a path")
    return value


def _sites(value: object) -> Mapping[str, Sequence[str]]:
    fields = Fields(value)
    assert isinstance(value, Mapping), "Fields has checked it"
    names = sorted(value)
    if AGGREGATOR in names:
        raise InvalidRecordError("the name of the aggregator", where=AGGREGATOR)
    return {parse_label(name): fields.records(name, _text) for name in names}


def _copy(sources: Sequence[Path], project: Path) -> None:
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, project, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, project / source.name)
        else:
            raise InvalidRecordError("a source that is not there", file=str(source))


class SiteProcess:
    """A site in a process of its own; a `Link` to it.

    Args:
        name: The site's name.
        folder: Its folder.
        hidden: The folder of all parties, of which it sees its own part alone.
        arguments: More arguments of the command.
        patience_s: How long it may take to answer.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        hidden: Path,
        arguments: Sequence[str],
        patience_s: int = PATIENCE_S,
    ) -> None:
        self._name = name
        self._patience_s = patience_s
        command = [sys.executable, "-s", "-P", "-m", "kolm_build", "federated", "--site"]
        self._process = subprocess.Popen(
            [*confined(folder, hidden), *command, str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(folder),
            cwd=folder,
        )

    @property
    def name(self) -> str:
        """The site's name."""
        return self._name

    def send(self, kind: str, **body: object) -> None:
        """Ask it something.

        Raises:
            RoundError: It is gone.
        """
        try:
            write_message(_stream(self._process.stdin), {"kind": kind, **body})
        except OSError:
            raise self._gone() from None

    def receive(self) -> Fields:
        """What it answers.

        Raises:
            KolmError: It refuses, and says why.
            RoundError: It is gone.
        """
        stream = _stream(self._process.stdout)
        if not select([stream], [], [], self._patience_s)[0]:
            self.kill()  # an answer that comes later would be taken for that to another question
            raise RoundError(
                "the site did not answer in time",
                where=self._name,
                expected=f"an answer in {self._patience_s} s",
                advice="Give it more: --patience SECONDS.",
            )
        try:
            fields = read_message(stream)
        except (OSError, SubmissionError):
            fields = None
        if fields is None:
            raise self._gone()
        return answered(fields, self._name)

    def _gone(self) -> RoundError:
        return RoundError("the site is gone", where=self._name)

    def stop(self) -> None:
        """End it, gently: without input it has nothing to do."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


def confined(folder: Path, hidden: Path) -> list[str]:
    """The start of a command that sees of `hidden` only `folder`, and can write to that alone.

    Raises:
        NoSandboxError: Namespaces do not work here.
    """
    bwrap = find_sandbox().bwrap
    return [
        str(bwrap),
        *("--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev", "--dev-bind", "/proc", "/proc"),
        *("--tmpfs", str(hidden), "--bind", str(folder), str(folder)),
        *("--unshare-net", "--unshare-ipc", "--die-with-parent", "--new-session"),
        *("--chdir", str(folder), "--"),
    ]  # fmt: skip


def _environment(folder: Path) -> dict[str, str]:
    """What a site's process is told of its surroundings: its own folder, and where kolm is."""
    kept = ("PATH", "LANG", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "LD_LIBRARY_PATH")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(Path(kolm_build.__file__).parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "it was asked for"
    return stream
