"""Names: parsed once, then known to be good (spec/tree.md, spec/derivation.md)."""

from __future__ import annotations

import re
from unicodedata import is_normalized

from kolm_build.errors import InvalidRecordError

MAX_NAME_BYTES = 255
_ENTRY = re.compile(r"[^/\\\x00-\x1f\x7f]+")
_LABEL = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*")


def parse_label(text: str) -> str:
    """`text` as the name of a step, node, output, role or parameter.

    Raises:
        InvalidRecordError: It is not lower-case letters and digits with single ``-``, ``_`` or
            ``.`` between them, at most 64 characters.
    """
    if len(text) > 64 or not _LABEL.fullmatch(text):
        raise InvalidRecordError(
            "not a name",
            expected="lower-case letters and digits, single '-', '_' or '.' between them",
            actual=repr(text)[:80],
        )
    return text


def parse_part(text: str) -> str:
    """`text` as a name that others are made of, such as ``dataset-NAME`` and ``data-NAME-source``.

    Raises:
        InvalidRecordError: It is no label of at most 40 characters, has a dot, or has an end that
            would give two things one name.
    """
    if len(text) > 40 or "." in text or text.endswith(("-source", "-script")):
        raise InvalidRecordError(
            "not a name for this",
            expected="at most 40 lower-case letters and digits with single '-' or '_' between "
            "them, not ending in -source or -script",
            actual=repr(text)[:80],
        )
    return parse_label(text)


def parse_entry(text: str) -> str:
    """`text` as the name of one entry of a tree.

    Raises:
        InvalidRecordError: It is empty, ``.``, ``..``, too long, not NFC, or holds ``/``, a
            backslash or a control character.
    """
    bad = text in (".", "..") or not _ENTRY.fullmatch(text) or not is_normalized("NFC", text)
    if not bad:
        try:
            bad = len(text.encode()) > MAX_NAME_BYTES
        except UnicodeEncodeError:
            bad = True
    if bad:
        raise InvalidRecordError(
            "not a file name that a tree may hold",
            expected="1 to 255 bytes of NFC text, no '/', '\\', control characters, '.', '..'",
            actual=ascii(text)[:90],
        )
    return text
