"""Messages between an aggregator and a site: canonical CBOR, its length in 8 bytes before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Protocol

from kolm_build import errors
from kolm_build.core import cbor
from kolm_build.core.fields import Fields
from kolm_build.errors import KolmError, SubmissionError

LENGTH_BYTES = 8

Message = Mapping[str, object]


class Link(Protocol):
    """A site, as the aggregator reaches it."""

    @property
    def name(self) -> str:
        """The site's name."""

    def send(self, kind: str, **body: object) -> None:
        """Ask the site something."""

    def receive(self) -> Fields:
        """What the site answers.

        Raises:
            KolmError: It refuses, and says why, or it is gone.
        """


def write_message(stream: IO[bytes], message: Message) -> None:
    """Write one message."""
    data = cbor.encode(message)
    stream.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    stream.flush()


def read_message(stream: IO[bytes]) -> Fields | None:
    """The next message; None where there is none any more.

    Raises:
        SubmissionError: It is cut off or too long.
        InvalidRecordError: It is not canonical CBOR.
    """
    head = stream.read(LENGTH_BYTES)
    if not head:
        return None
    size = int.from_bytes(head, "big")
    if len(head) < LENGTH_BYTES or size > cbor.MAX_BYTES:
        raise SubmissionError("not a message", actual=f"{size} bytes")
    data = stream.read(size)
    if len(data) < size:
        raise SubmissionError("a message that is cut off")
    return Fields(cbor.decode(data))


def refusal(error: KolmError) -> Message:
    """The message that says why something was refused."""
    return {"kind": "error", "error": error.to_value()}


def answered(fields: Fields, who: str) -> Fields:
    """`fields`, unless they say that something was refused.

    Raises:
        KolmError: They do; of the class that the other side raised.
    """
    if fields.text("kind") != "error":
        return fields
    told = Fields(fields.table("error"))
    code, reason = told.text("code"), told.text("reason")
    rest = {
        name: told.text(name)
        for name in ("file", "where", "expected", "actual", "advice")
        if told.has(name)
    }
    rest["where"] = f"{who}: {rest['where']}" if "where" in rest else who
    raise _class_of(code)(reason, **rest)


def _class_of(code: str) -> type[KolmError]:
    known = {
        one.code: one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, KolmError)
    }
    return known.get(code, SubmissionError)
