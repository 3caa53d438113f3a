"""One file over http(s), resumed where it broke off.

What arrives is not trusted: the output of a fetch step is fixed by a digest, and the engine
checks it. So this only has to bring all the bytes, and to say clearly why it cannot.
"""

from __future__ import annotations

import errno
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kolm_build.errors import NetworkError

ATTEMPTS = 6
TIMEOUT_S = 60
CHUNK_BYTES = 1 << 20

_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Trouble that another attempt does not help."""

_ADVICE: Mapping[int, str] = {
    401: "The server wants a login; kolm locks public sources only.",
    403: "The server does not give it to everyone.",
    404: "Check the address; it may have moved.",
    410: "It was removed from there.",
}
_HEADERS: Mapping[str, str] = {"User-Agent": "kolm-build", "Accept-Encoding": "identity"}


@dataclass(slots=True, kw_only=True)
class _Partial:
    """What has arrived of a file: `size` bytes of the version that `tag` names."""

    path: Path
    size: int = 0
    total: int = 0
    tag: str = ""


class _BrokenOffError(Exception):
    """The answer ended early, or could not be had this time."""


def download(
    url: str,
    path: Path,
    *,
    wait: Callable[[float], None],
    on_bytes: Callable[[int, int], None],
) -> None:
    """Write what `url` names to `path`.

    Args:
        url: An http or https address.
        path: The file to make.
        wait: Sleeps for seconds between two attempts.
        on_bytes: Is told the bytes received and the bytes in all, 0 where nobody knows.

    Raises:
        NetworkError: The server does not have it, or it broke off too often.
    """
    partial = _Partial(path=path)
    path.write_bytes(b"")
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            wait(2.0 ** (attempt - 1))
        try:
            return _attempt(url, partial, on_bytes)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _AGAIN:
                raise _refused(url, error) from None
            reason = f"{error.code} {error.reason}"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            OSError,
            _BrokenOffError,
        ) as error:
            reason = str(error) or type(error).__name__
    raise NetworkError(
        f"a download did not succeed in {ATTEMPTS} attempts",
        file=url,
        expected=f"{partial.total} bytes" if partial.total else None,
        actual=f"{partial.size} bytes, then: {reason}",
        advice="Check the network or the proxy settings and run the same command again.",
    )


def _attempt(url: str, partial: _Partial, on_bytes: Callable[[int, int], None]) -> None:
    """Get the rest of the file."""
    headers = dict(_HEADERS)
    if partial.size and partial.tag:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.tag}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # the opener knows http(s)
    with _opener().open(request, timeout=TIMEOUT_S) as answer:
        _begin(partial, answer)
        with partial.path.open("r+b") as file:
            file.truncate(partial.size)
            file.seek(partial.size)
            _receive(answer, file, partial, on_bytes)
    if partial.total and partial.size != partial.total:
        raise _BrokenOffError(f"the answer ended at {partial.size} of {partial.total} bytes")


def _begin(partial: _Partial, answer: http.client.HTTPResponse) -> None:
    """Go on where `partial` ends if the answer does, else start again."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise NetworkError("the server sent an encoded file", expected="the file as it is")
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    if answer.status == http.client.PARTIAL_CONTENT and span is not None:
        if (int(span[1]), int(span[2])) == (partial.size, partial.total):
            return
        partial.size, partial.tag = 0, ""
        raise _BrokenOffError("the server went on at another place")
    tag = answer.headers.get("ETag", "")
    partial.size = 0
    partial.tag = "" if tag.startswith("W/") else tag or answer.headers.get("Last-Modified", "")
    length = answer.headers.get("Content-Length", "")
    partial.total = int(length) if length.isdecimal() else 0


def _receive(
    answer: http.client.HTTPResponse,
    file: IO[bytes],
    partial: _Partial,
    on_bytes: Callable[[int, int], None],
) -> None:
    while data := answer.read1(CHUNK_BYTES):
        file.write(data)
        partial.size += len(data)
        on_bytes(partial.size, partial.total)


def _refused(url: str, error: urllib.error.HTTPError) -> NetworkError:
    return NetworkError(
        "the server does not give the file",
        file=url,
        actual=f"{error.code} {error.reason}",
        advice=_ADVICE.get(error.code),
    )


def _opener() -> urllib.request.OpenerDirector:
    """What opens http and https alone: no file, ftp or data, not even after a redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
