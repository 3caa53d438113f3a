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
