"""The values of one row, in the one form that is hashed, each with its place for errors."""

from __future__ import annotations

from decimal import Decimal
from unicodedata import normalize

from kolm_build.core.decimals import parse_decimal, render_decimal
from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.steps._rows import Row
from kolm_build.steps._template import Template


class Cells:
    """A row's values as text in Unicode form NFC.

    Args:
        row: The row.
    """

    __slots__ = ("_row",)

    def __init__(self, row: Row) -> None:
        self._row = row

    @property
    def number(self) -> int:
        """The row's number in its file."""
        return self._row.number

    def text(self, column: str) -> str:
        """The value of `column`."""
        return self._nfc(self._row.text(column), column)

    def texts(self, column: str) -> tuple[str, ...]:
        """The values in the list that `column` holds."""
        return tuple(self._nfc(text, column) for text in self._row.texts(column))

    def filled(self, template: Template) -> str:
        """`template` with its columns replaced."""
        values = {column: self.text(column) for column in template.columns}
        return normalize("NFC", template.fill(values))

    def needed(self, name: str, template: Template) -> str:
        """`template` with its columns replaced; blank text is refused as an empty `name`."""
        text = self.filled(template)
        if not text.strip():
            raise self.error(f"an empty {name}")
        return text

    def content(self, name: str, template: Template) -> str:
        """The values in `template` without its words; blank text is refused as an empty `name`."""
        text = normalize("NFC", "\n".join(self.text(column) for column in template.columns))
        if not text.strip():
            raise self.error(f"an empty {name}")
        return text

    def decimal(self, name: str, template: Template) -> Decimal | None:
        """The decimal number of 0 or more that `template` gives; None for nothing."""
        text = self.filled(template)
        if not text:
            return None
        try:
            number = parse_decimal(text)
        except InvalidRecordError as error:
            raise self.error(
                error.reason, field=name, expected=error.expected, actual=error.actual
            ) from None
        if number < 0:
            raise self.error("a negative number", field=name, actual=text)
        return number

    def truth(self, name: str, text: str) -> bool:
        """Whether `text` is true; it is that or false."""
        if text not in ("true", "false"):
            raise self.error(
                "neither true nor false", field=name, expected="true or false", actual=repr(text)
            )
        return text == "true"

    def error(
        self,
        reason: str,
        *,
        field: str = "",
        expected: str | None = None,
        actual: str | None = None,
    ) -> InvalidDataError:
        """The error about this row, and `field` of it."""
        return InvalidDataError(
            reason,
            where=f"row {self.number}" + (f", {field}" if field else ""),
            expected=expected,
            actual=None if actual is None else actual[:80],
        )

    def _nfc(self, text: str, column: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.error(
                "half of a surrogate pair is no character",
                field=f"column {column!r}",
                actual=ascii(text),
            ) from None
        return normalize("NFC", text)


def plain(number: Decimal | None) -> str:
    """`number` in its plain form; empty for nothing."""
    return "" if number is None else render_decimal(number)
