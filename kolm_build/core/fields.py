"""Reading plain values (decoded CBOR, JSON or TOML) into records, strictly.

Every key is asked for once with its type; what is left over is an error. Errors carry the path,
which grows on the way out, so a message ends in ``train[0].learning_rate``. This module needs the
standard library alone, because the verifier reads with it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from kolm_build.errors import InvalidRecordError, UnsupportedVersionError

T = TypeVar("T")

_NAMES = {str: "text", int: "an integer", bool: "true or false", bytes: "bytes"}
_MISSING = object()


class Fields:
    """The keys of one map, each to be taken exactly once.

    Args:
        value: The map; anything else is refused.

    Raises:
        InvalidRecordError: `value` is not a map with text keys.
    """

    def __init__(self, value: object) -> None:
        if not isinstance(value, Mapping):
            raise InvalidRecordError("not a table", expected="a table", actual=shown(value))
        self._left = dict(value)
        self._asked: list[str] = []

    def has(self, name: str) -> bool:
        """Whether the key `name` is there and not taken yet."""
        return name in self._left

    def require(self, *names: str) -> None:
        """Refuse a map without one of `names`: a hashed record writes even what is empty."""
        for name in names:
            if name not in self._left:
                raise InvalidRecordError("missing value", where=name)

    def take(self, name: str, kind: type[T], *, default: object = _MISSING) -> T:
        """The value of `name`, of exactly the type `kind`; `default` where it is absent."""
        self._asked.append(name)
        if name not in self._left:
            if default is _MISSING:
                raise InvalidRecordError(
                    "missing value", where=name, expected=_NAMES.get(kind, kind.__name__)
                )
            return default  # type: ignore[return-value]  # the caller's own default
        value = self._left.pop(name)
        if type(value) is not kind:
            raise InvalidRecordError(
                "wrong type",
                where=name,
                expected=_NAMES.get(kind, kind.__name__),
                actual=shown(value),
            )
        return value

    def is_null(self, name: str) -> bool:
        """Whether `name` is there and null; if so it is taken."""
        self._asked.append(name)
        if name in self._left and self._left[name] is None:
            del self._left[name]
            return True
        return False

    def nullable(self, name: str, kind: type[T]) -> T | None:
        """The value of `name`, of exactly the type `kind`, or None where it is null."""
        return None if self.is_null(name) else self.take(name, kind)

    def text(self, name: str, *, default: object = _MISSING) -> str:
        """The text under `name`."""
        return self.take(name, str, default=default)

    def integer(self, name: str, *, default: object = _MISSING) -> int:
        """The integer under `name`; true and false are not integers."""
        return self.take(name, int, default=default)

    def flag(self, name: str, *, default: object = _MISSING) -> bool:
        """The boolean under `name`."""
        return self.take(name, bool, default=default)

    def parsed(self, name: str, parse: Callable[[str], T]) -> T:
        """The text under `name`, as `parse` reads it."""
        text = self.text(name)
        try:
            return parse(text)
        except InvalidRecordError as error:
            raise error.under(name) from None

    def table(self, name: str) -> Mapping[str, object]:
        """The table under `name`; an empty one where it is absent."""
        self._asked.append(name)
        value = self._left.pop(name, {})
        if not isinstance(value, Mapping):
            raise InvalidRecordError(
                "wrong type", where=name, expected="a table", actual=shown(value)
            )
        return value

    def array(self, name: str) -> Sequence[object]:
        """The array under `name`; an empty one where it is absent."""
        self._asked.append(name)
        value = self._left.pop(name, [])
        if not isinstance(value, list | tuple):
            raise InvalidRecordError(
                "wrong type", where=name, expected="an array", actual=shown(value)
            )
        return value

    def records(self, name: str, read: Callable[[object], T]) -> tuple[T, ...]:
        """Each item of the array under `name`, as `read` reads it."""
        return tuple(
            _under(f"{name}[{index}]", read, item) for index, item in enumerate(self.array(name))
        )

    def record(self, name: str, read: Callable[[object], T]) -> T:
        """The table under `name`, as `read` reads it."""
        return _under(name, read, self.table(name))

    def version(self, *supported: int) -> int:
        """The version under ``v`` or ``version``, one of `supported`."""
        name = "version" if self.has("version") else "v"
        found = self.integer(name)
        if found not in supported:
            raise UnsupportedVersionError(
                "another format version",
                where=name,
                expected=" or ".join(map(str, supported)),
                actual=str(found),
                advice="A newer kolm wrote this; read it with that version or a later one.",
            )
        return found

    def done(self) -> None:
        """Refuse every key that was not taken.

        Raises:
            InvalidRecordError: A key is unknown; the message suggests the nearest known one.
        """
        if self._left:
            raise self._unknown(min(map(str, self._left)))

    def _unknown(self, name: str) -> InvalidRecordError:
        from difflib import get_close_matches

        near = get_close_matches(name, self._asked, 1)
        return InvalidRecordError(
            "unknown key",
            where=name,
            expected="one of " + ", ".join(sorted(set(self._asked))),
            advice=f"Did you mean {near[0]!r}?" if near else None,
        )


def _under(where: str, read: Callable[[object], T], item: object) -> T:
    try:
        return read(item)
    except InvalidRecordError as error:
        raise error.under(where) from None


def shown(value: object) -> str:
    """`value` for an error message, short."""
    text = f"{_NAMES.get(type(value), type(value).__name__)}: {value!r}"
    return text if len(text) <= 90 else text[:87] + "..."
