"""The log of the calls that recorded answers came from: what of it a report tells (DATA-62)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from kolm_build.core.provenance import CALL_LOG, Teacher
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._files import files_of, input_folder


def provenance_of(request: StepRequest, teacher: Teacher | None) -> Mapping[str, object]:
    """What the report tells of `teacher`; nothing where there is none.

    Raises:
        InvalidRecordError: There is a log and no teacher, the other way round, or an empty log.
    """
    if teacher is None:
        if CALL_LOG in request.inputs:
            raise InvalidRecordError(
                "a log of calls to nobody", where=f"inputs.{CALL_LOG}", expected="provenance_vendor"
            )
        return {}
    log = _files(input_folder(request, CALL_LOG))
    return {"provenance": {**teacher.to_value(), CALL_LOG: log}}


def _files(folder: Path) -> Sequence[Mapping[str, object]]:
    found = [_file(folder, name) for name in files_of(folder)]
    if not any(one["size"] for one in found):
        raise InvalidRecordError(
            "an empty log of calls",
            where=f"inputs.{CALL_LOG}",
            expected="what was asked and answered",
            actual=", ".join(str(one["file"]) for one in found) or "no file",
        )
    return found


def _file(folder: Path, name: str) -> Mapping[str, object]:
    with (folder / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": name,
        "sha256": f"sha256:{digest}",
        "size": (folder / name).stat().st_size,
    }
