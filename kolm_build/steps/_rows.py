"""Reading rows: JSON lines, CSV and Parquet in one shape, each with its place (spec/dataset.md).

Values become text as they are written in the file: a number keeps its digits. Nothing is guessed,
trimmed or skipped; what cannot be read is refused with the row's number.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import NoReturn

from kolm_build.errors import InvalidDataError

SUFFIXES: Mapping[str, str] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a file.

    Attributes:
        number: Its number, from 1; a CSV header is not counted.
        values: Column to value; what is neither text nor a number nor a boolean is kept as it
            is, to be refused where a template needs it.
    """

    number: int
    values: Mapping[str, object]

    def text(self, column: str) -> str:
        """The value of `column` as text.

        Raises:
            InvalidDataError: The row lacks the column, or its value is not a single value.
        """
        return self._as_text(self._value(column), column)

    def texts(self, column: str) -> tuple[str, ...]:
        """The values of `column` as texts: those of a list, or of text that spells one in JSON.

        Raises:
            InvalidDataError: The row lacks the column, or its value is no list of single values.
        """
        value = self._value(column)
        if type(value) is str:
            value = _spelt(value)
        if type(value) is not list:
            raise InvalidDataError(
                "a value that is not a list",
                where=f"row {self.number}, column {column!r}",
                expected='a list, or its text in JSON, such as ["a", "b"]',
                actual=repr(value)[:80],
            )
        return tuple(self._as_text(item, column) for item in value)

    def _value(self, column: str) -> object:
        if column not in self.values:
            raise InvalidDataError(
                "a row lacks a column",
                where=f"row {self.number}",
                expected=f"the column {column!r}",
                actual=", ".join(map(repr, self.values)) or "no column",
            )
        return self.values[column]

    def _as_text(self, value: object, column: str) -> str:
        if type(value) is bool:
            return "true" if value else "false"
        if type(value) is int:
            return str(value)
        if type(value) is not str:
            raise InvalidDataError(
                "a value that is not text, an integer or a boolean",
                where=f"row {self.number}, column {column!r}",
                actual=repr(value)[:80],
                advice="Write it as text in a [data] script.",
            )
        return value


def _spelt(text: str) -> object:
    """The value that `text` spells in JSON; `text` where it spells none."""
    try:
        return _json(text)
    except (ValueError, RecursionError):
        return text


def _json(text: str) -> object:
    """The value that `text` spells; numbers stay text, with the digits they have there."""
    return json.loads(
        text,
        object_pairs_hook=_unrepeated,
        parse_int=str,
        parse_float=str,
        parse_constant=_no_constant,
    )


def read_rows(path: Path, form: str, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of the file `path`.

    Args:
        path: The file.
        form: ``jsonl``, ``csv`` or ``parquet``.
        columns: The columns that are needed; others may be left out of a row.

    Raises:
        InvalidDataError: The file is not what `form` says; the message names the row.
    """
    if form == "parquet":
        return _parquet(path, columns)
    text = _utf8(path)
    return _json_lines(text) if form == "jsonl" else _csv(text)


def _utf8(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(_BOM):
        raise InvalidDataError(
            "the file starts with a byte order mark",
            where="line 1",
            expected="plain UTF-8",
            advice="Save it as UTF-8 without a BOM.",
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise InvalidDataError(
            "not UTF-8",
            where=f"line {line}, byte {column}",
            expected="UTF-8 text",
            actual=f"byte 0x{data[error.start]:02x}",
            advice="Convert the file, for instance with `iconv -t UTF-8`.",
        ) from None


def _json_lines(text: str) -> Iterator[Row]:
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            values = _json(line)
        except (ValueError, RecursionError) as error:
            raise _bad_line(number, str(error), line) from None
        if type(values) is not dict:
            raise _bad_line(number, "not an object", line)
        yield Row(number=number, values=values)


def _bad_line(number: int, actual: str, line: str) -> InvalidDataError:
    return InvalidDataError(
        "a line that is not a JSON object",
        where=f"row {number}",
        expected='one object a line, such as {"text": "…", "label": "…"}',
        actual=f"{actual}: {line[:60]!r}",
    )


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _csv(text: str) -> Iterator[Row]:
    """RFC 4180 with a header; every record has the header's number of fields."""
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        _check_header(header)
        for number, record in enumerate(reader, 1):
            if len(record) != len(header):
                raise InvalidDataError(
                    "a record with another number of fields than the header",
                    where=f"row {number} (line {reader.line_num})",
                    expected=str(len(header)),
                    actual=str(len(record)),
                )
            yield Row(number=number, values=dict(zip(header, record, strict=True)))
    except csv.Error as error:
        raise InvalidDataError(
            "not CSV", where=f"line {reader.line_num}", actual=str(error)
        ) from None


def _check_header(header: Sequence[str]) -> None:
    if not header or "" in header or len(set(header)) != len(header):
        raise InvalidDataError(
            "the first line is not a header",
            where="line 1",
            expected="distinct column names",
            actual=",".join(header)[:80] or "nothing",
        )


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            table = file.read(columns=present, use_threads=False)
            records = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InvalidDataError(
            "not a readable Parquet file", actual=str(error).splitlines()[0][:200]
        ) from None
    for number, values in enumerate(records, 1):
        yield Row(number=number, values=values)
