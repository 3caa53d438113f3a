"""The folders that a step reads and writes: what must be in them, in a fixed order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError

REWARD_HEAD = ("reward_head.json", "reward_head.safetensors")
"""Files that a reward model has beside a model's own, or beside its adapter (RL-22)."""


def input_folder(request: StepRequest, role: str) -> Path:
    """The folder of the input `role`.

    Raises:
        InvalidRecordError: The derivation gives no such input.
    """
    if role not in request.inputs:
        raise InvalidRecordError(
            "a step lacks an input",
            where=f"inputs.{role}",
            expected=f"the input {role!r} of step {request.step!r}",
            actual=", ".join(sorted(request.inputs)) or "no input",
        )
    return Path(request.inputs[role])


def output_folder(request: StepRequest, name: str = "out") -> Path:
    """The empty folder of the output `name`.

    Raises:
        InvalidRecordError: The derivation asks for no such output.
    """
    if name not in request.outputs:
        raise InvalidRecordError(
            "a step has an output that was not asked for",
            where=f"outputs.{name}",
            expected=", ".join(sorted(request.outputs)),
        )
    return Path(request.outputs[name])


def files_of(folder: Path) -> tuple[str, ...]:
    """The paths of all files below `folder`, relative, with ``/``, sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(found))


def copy_others(source: Path, out: Path, *, but: str) -> None:
    """Copy every file below `source` to `out`, except the one whose relative path is `but`."""
    for name in files_of(source):
        if name != but:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, out / name)


def only_file(folder: Path, *, role: str, suffixes: Sequence[str]) -> Path:
    """The one file below `folder` whose name ends in one of `suffixes`.

    Raises:
        InvalidRecordError: There is none, or more than one.
    """
    names = files_of(folder)
    found = [name for name in names if name.lower().endswith(tuple(suffixes))]
    if len(found) != 1:
        raise InvalidRecordError(
            "the input needs exactly one file of its format",
            where=f"inputs.{role}",
            expected="one file named *" + " or *".join(suffixes),
            actual=", ".join((found or names)[:8]) or "an empty folder",
        )
    return folder / found[0]


def write_json(path: Path, value: object) -> None:
    """Write `value` as the JSON that model folders hold: sorted keys, indented, UTF-8.

    Unlike a hashed row this may hold floats; Python writes each as its shortest decimal.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_bytes(text.encode() + b"\n")


def write_tokenizer(path: Path, value: object) -> None:
    """Write `value` as the `tokenizer.json` of a model folder: one line, sorted keys, UTF-8.

    A vocabulary is a hundred thousand short lines when it is indented, and twice as long.
    """
    separators = (",", ":")
    text = json.dumps(
        value, sort_keys=True, separators=separators, ensure_ascii=False, allow_nan=False
    )
    path.write_bytes(text.encode() + b"\n")
