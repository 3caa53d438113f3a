"""Running a step as its engine would, inside the test's process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import EXIT_OK, EXIT_REFUSED, StepRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a step did: its status, its events, its output folders."""

    status: int
    events: list[dict]
    outputs: dict[str, Path]

    @property
    def out(self) -> Path:
        assert self.status == EXIT_OK, self.events
        return self.outputs["out"]

    @property
    def refusal(self) -> dict:
        assert self.status == EXIT_REFUSED, self.events
        return self.events[-1]

    def logged(self) -> str:
        return "\n".join(event["text"] for event in self.events if event["event"] == "log")


def run_step(module: ModuleType, root: Path, *, inputs=None, params=None, outputs=("out",)) -> Ran:
    """Run `module.main` on fresh folders below `root`."""
    place = root / f"run-{len(list(root.glob('run-*')))}"
    folders = {name: place / "outputs" / name for name in outputs}
    for folder in (*folders.values(), place / "scratch"):
        folder.mkdir(parents=True)
    fd = os.open(place / "events", os.O_CREAT | os.O_WRONLY)
    request = StepRequest(
        step=module.__name__.rpartition(".")[2],
        params=params or {},
        inputs={role: str(path) for role, path in (inputs or {}).items()},
        outputs={name: str(path) for name, path in folders.items()},
        scratch=str(place / "scratch"),
        numerics=Numerics(cls="exact-1"),
        events_fd=fd,
    )
    (place / "request").write_bytes(request.encode())
    try:
        status = module.main(["step.py", str(place / "request")])
    finally:
        os.close(fd)
    events = [json.loads(line) for line in (place / "events").read_text().splitlines()]
    return Ran(status=status, events=events, outputs=folders)
