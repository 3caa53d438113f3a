"""The folders that one step sees: filled before it runs, checked after (spec/step-protocol.md).

Outside they lie in a scratch folder of the store. `room` holds code, inputs, the request and the
sandbox's own mount points, and is read-only inside; `out` has one folder an output; `build` is
scratch and working directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kolm_build.core.derivation import ContentInput, Derivation
from kolm_build.core.request import Circumstances, StepRequest
from kolm_build.engine.process import EVENTS_FD
from kolm_build.engine.protocol import Store
from kolm_build.errors import StepFailedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The folders of one step.

    Attributes:
        room: What it may only read.
        out: Its outputs.
        build: Its scratch.
    """

    room: Path
    out: Path
    build: Path

    @classmethod
    def below(cls, folder: Path) -> Self:
        """The folders of a step whose scratch folder is `folder`."""
        return cls(room=folder / "room", out=folder / "out", build=folder / "build")

    def furnish(
        self,
        derivation: Derivation,
        store: Store,
        *,
        seen_as: Room,
        circumstances: Circumstances | None,
    ) -> None:
        """Make and fill the folders.

        Args:
            derivation: Resolved.
            store: Has the code and every input.
            seen_as: Where the step finds these folders.
            circumstances: How a portable step runs here.

        Raises:
            MissingObjectError: An input or the code is not in the store.
            CorruptObjectError: Its bytes are not what they were.
        """
        for folder in (self.room, self.room / "in", self.out, self.build):
            folder.mkdir()
        store.materialise(derivation.code, self.room / "code")
        for role, value in derivation.inputs:
            assert isinstance(value, ContentInput)  # the derivation is resolved
            store.materialise(value.content, self.room / "in" / role)
        for output, _ in derivation.outputs:
            (self.out / output).mkdir()
        request = seen_as.request(derivation, circumstances)
        (self.room / "request").write_bytes(request.encode())

    def request(self, derivation: Derivation, circumstances: Circumstances | None) -> StepRequest:
        """What the step is asked, with these folders' paths."""
        return StepRequest(
            step=derivation.step,
            params=dict(derivation.params),
            inputs={role: f"{self.room}/in/{role}" for role, _ in derivation.inputs},
            outputs={name: f"{self.out}/{name}" for name, _ in derivation.outputs},
            scratch=str(self.build),
            numerics=derivation.numerics,
            events_fd=EVENTS_FD,
            circumstances=circumstances,
        )

    def check_outputs(self, derivation: Derivation) -> None:
        """Refuse what no tree may hold, and make the rest readable with plain modes.

        Raises:
            StepFailedError: An output is missing or foreign, or holds a device, a socket, a pipe,
                or a link out of its folder; `where` names the path.
        """
        expected = {name for name, _ in derivation.outputs}
        found = {entry.name for entry in os.scandir(self.out)}
        if expected != found:
            raise StepFailedError(
                f"the step {derivation.step} left other outputs than it has",
                expected=", ".join(sorted(expected)),
                actual=", ".join(sorted(found)) or "none",
            )
        for name in sorted(expected):
            if not stat.S_ISDIR((self.out / name).lstat().st_mode):
                raise StepFailedError("an output is not a folder", where=name)
            for path, mode in _walk(self.out / name):
                _check_entry(path, mode, self.out / name)


def _walk(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every entry below `folder` with its mode; folders are made readable on the way."""
    folder.chmod(0o755)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        mode = entry.stat(follow_symlinks=False).st_mode
        yield path, mode
        if stat.S_ISDIR(mode):
            yield from _walk(path)


def _check_entry(path: Path, mode: int, top: Path) -> None:
    where = path.relative_to(top.parent).as_posix()
    if stat.S_ISREG(mode):
        path.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
    elif stat.S_ISLNK(mode):
        target = path.readlink()
        depth = len(path.relative_to(top).parts) - 1
        if target.is_absolute() or target.parts.count("..") > depth:
            raise StepFailedError("a link leads out of its output", where=where, actual=str(target))
    elif not stat.S_ISDIR(mode):
        raise StepFailedError(
            "an output may hold files, folders and links only",
            where=where,
            actual=f"a special file of mode {mode:o}",
        )
