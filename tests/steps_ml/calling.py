"""Running a step as an engine would, and small inputs for steps."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kolm_build.core import strict_json
from kolm_build.core.numerics import Numerics
from kolm_build.core.request import EXIT_OK, EXIT_REFUSED, Circumstances, StepRequest
from kolm_build.numerics.kernels import LIBRARY
from kolm_build.steps.table import INHERIT, STEPS
from tests.support.models import ROOT

LABELS = ("bone", "lung", "mind", "skin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a step did: its status, its events, its output folders."""

    status: int
    events: list[dict]
    outputs: dict[str, Path]
    scratch: Path

    def folder(self, name: str = "out") -> Path:
        assert self.status == EXIT_OK, self.events
        return self.outputs[name]

    def refusal(self) -> dict:
        assert self.status == EXIT_REFUSED, self.events
        return self.events[-1]

    def logged(self) -> list[str]:
        return [event["text"] for event in self.events if event["event"] == "log"]


def run_step(
    step, root, *, inputs, params=None, env=None, seed=0, portable=None, outputs=None
) -> Ran:
    """Run `step` in this process; or with `env` in one of its own, in no other environment.

    With `portable`, threads and an instruction set (None for the best), in the class portable-1.
    With `outputs` these and not those that the table names.
    """
    spec = STEPS[step]
    place = root / f"{step}-{len(list(root.glob('*')))}"
    outputs = {name: place / "outputs" / name for name in outputs or spec.outputs}
    for folder in (*outputs.values(), place / "scratch"):
        folder.mkdir(parents=True)
    inherited = "native-1" if portable is None else "portable-1"
    numerics = inherited if spec.numerics == INHERIT else "exact-1"
    threads, isa = portable or (1, None)
    fd = os.open(place / "events", os.O_CREAT | os.O_WRONLY)
    request = StepRequest(
        step=step,
        params=params or {},
        inputs={role: str(path) for role, path in inputs.items()},
        outputs={name: str(path) for name, path in outputs.items()},
        scratch=str(place / "scratch"),
        numerics=Numerics(cls=numerics, seed=seed, threads=1),
        events_fd=fd,
        circumstances=Circumstances(kernels=str(LIBRARY), threads=threads, isa=isa)
        if numerics == "portable-1"
        else None,
    )
    (place / "request").write_bytes(request.encode())
    try:
        status = _here(spec.module, place) if env is None else _fresh(spec.module, place, fd, env)
    finally:
        os.close(fd)
    events = [json.loads(line) for line in (place / "events").read_text().splitlines()]
    return Ran(status=status, events=events, outputs=outputs, scratch=place / "scratch")


def _here(module: str, place: Path) -> int:
    main = importlib.import_module(f"kolm_build.steps.{module}").main
    return main(["step.py", str(place / "request")])


def _fresh(module: str, place: Path, fd: int, env: dict[str, str]) -> int:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        f"from kolm_build.steps.{module} import main; sys.exit(main(sys.argv))"
    )
    done = subprocess.run(
        [sys.executable, "-s", "-P", "-B", "-c", code, str(place / "request")],
        pass_fds=[fd],
        cwd=place / "scratch",
        env={"HOME": str(place / "scratch"), "OMP_WAIT_POLICY": "PASSIVE", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (EXIT_OK, EXIT_REFUSED), done.stderr[-3000:]
    return done.returncode


def row(number: int, prompt: str, answer: str) -> bytes:
    """A dataset's line."""
    return strict_json.dumps(
        {
            "answer": answer,
            "group": "",
            "id": f"sha256:{number:064x}",
            "messages": [{"content": prompt, "role": "user"}],
        }
    )


def pair_row(number: int, prompt: str, chosen: str, rejected: str) -> bytes:
    """A line of a set of pairs."""
    return strict_json.dumps(
        {
            "chosen": chosen,
            "group": "",
            "id": f"sha256:{number:064x}",
            "margin": "",
            "messages": [{"content": prompt, "role": "user"}],
            "rejected": rejected,
        }
    )


def feedback_row(number: int, prompt: str, answer: str, *, good: bool) -> bytes:
    """A line of a set of answers with verdicts."""
    return strict_json.dumps(
        {
            "answer": answer,
            "good": good,
            "group": "",
            "id": f"sha256:{number:064x}",
            "messages": [{"content": prompt, "role": "user"}],
            "weight": "1",
        }
    )


def prompt_row(number: int, prompt: str, reference: str = "", **fields: str) -> bytes:
    """A line of a set of prompts."""
    return strict_json.dumps(
        {
            "fields": fields,
            "group": "",
            "id": f"sha256:{number:064x}",
            "messages": [{"content": prompt, "role": "user"}],
            "reference": reference,
        }
    )


def steps_row(number: int, prompt: str, steps: list[str], labels: list[bool]) -> bytes:
    """A line of a set of answers in steps."""
    return strict_json.dumps(
        {
            "group": "",
            "id": f"sha256:{number:064x}",
            "labels": labels,
            "messages": [{"content": prompt, "role": "user"}],
            "steps": steps,
        }
    )


def write_lines(folder: Path, name: str, lines) -> Path:
    """`folder`, made, with the file `name` of `lines`."""
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"".join(line + b"\n" for line in lines))
    return folder


def write_rows(folder: Path, name: str, rows) -> Path:
    """`folder`, made, with the file `name` of (prompt, answer) pairs."""
    return write_lines(folder, name, [row(at, *pair) for at, pair in enumerate(rows, 1)])


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
