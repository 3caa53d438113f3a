"""How many tokens fit a model."""

from __future__ import annotations

from kolm_build.errors import InvalidDataError

NO_LIMIT = 1 << 31
"""The window of a model that names none."""


def check_length(tokens: int, window: int) -> None:
    """Refuse more tokens than the model's window holds.

    Raises:
        InvalidDataError: It holds fewer.
    """
    if tokens > window:
        raise InvalidDataError(
            "prompt and answer do not fit the model's window",
            expected=f"at most {window} tokens",
            actual=f"{tokens} tokens",
        )
