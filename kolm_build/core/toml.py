"""Reading TOML: the standard library's parser, its errors told as ours."""

from __future__ import annotations

from kolm_build.errors import InvalidRecordError

_TWICE = ("overwrite", "twice", "immutable")


def read_toml(text: str) -> dict[str, object]:
    """The table that `text` holds.

    Raises:
        InvalidRecordError: It is not TOML; `where` is the line and column.
    """
    import tomllib  # 5 ms that a run without a recipe does not need

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).partition(" (at ")
        twice = any(word in reason for word in _TWICE)
        raise InvalidRecordError(
            f"not TOML: {reason[:1].lower()}{reason[1:]}",
            where=place.rstrip(")") or None,
            advice="A key or table stands there for the second time." if twice else None,
        ) from None
    except RecursionError:
        raise InvalidRecordError("not TOML: nested too deeply") from None
