"""What opens a bucket or a registry (spec/substituter.md)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What opens a bucket or a registry; never shown.

    Attributes:
        name: The access key's id, or the user.
        secret: The secret key, or the password.
        token: A session's token, where there is one.
    """

    name: str
    secret: str
    token: str | None = None

    def __repr__(self) -> str:
        return f"Credentials(name={self.name!r})"
