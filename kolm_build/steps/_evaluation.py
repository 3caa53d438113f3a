"""The two files of an evaluation (spec/evaluation.md).

Needs the standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from kolm_build.core import strict_json
from kolm_build.core.evaluation import Result, Summary
from kolm_build.errors import InvalidRecordError

RESULTS = "results.jsonl"
SUMMARY = "summary.json"


def write_evaluation(out: Path, results: Iterable[Result], summary: Summary) -> None:
    """Write both files to the folder `out`."""
    lines = (strict_json.dumps(result.to_value()) + b"\n" for result in results)
    (out / RESULTS).write_bytes(b"".join(lines))
    (out / SUMMARY).write_bytes(strict_json.dumps(summary.to_value()))


def weight_bytes(folder: Path) -> int:
    """The size of the weights of the model in `folder`, as shipped."""
    return sum(path.stat().st_size for path in sorted(folder.glob("*.safetensors")))


def read_summary(folder: Path, role: str) -> Summary:
    """The summary of the evaluation in `folder`, the input `role`.

    Raises:
        InvalidRecordError: It is missing or bad.
    """
    return Summary.from_value(read_table(folder, SUMMARY, role))


def read_results(folder: Path, role: str) -> tuple[Result, ...]:
    """The results of the evaluation in `folder`, the input `role`.

    Raises:
        InvalidRecordError: A line is not a result; `where` is its number.
    """
    lines = _read(folder, RESULTS, role).splitlines()
    return tuple(_result(f"{role}/{RESULTS}", *numbered) for numbered in enumerate(lines, 1))


def read_table(folder: Path, name: str, role: str) -> Mapping[str, object]:
    """The JSON object in the file `name` of `folder`, the input `role`.

    Raises:
        InvalidRecordError: It is missing or not strict JSON.
    """
    try:
        value = strict_json.loads(_read(folder, name, role))
    except InvalidRecordError as error:
        raise error.in_file(f"{role}/{name}") from None
    if not isinstance(value, dict):
        raise InvalidRecordError("not a JSON object", file=f"{role}/{name}")
    return value


def _read(folder: Path, name: str, role: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise InvalidRecordError("no such file", file=f"{role}/{name}") from None


def _result(file: str, number: int, line: bytes) -> Result:
    try:
        return Result.from_value(strict_json.loads(line))
    except InvalidRecordError as error:
        raise error.under(f"row {number}").in_file(file) from None
