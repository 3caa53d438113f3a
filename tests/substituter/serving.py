"""A web server that serves a folder, well or badly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread


@dataclass
class Faults:
    """What goes wrong, and where.

    Attributes:
        kind: One of `KINDS`.
        where: A pattern of the paths that it happens to.
        times: How often it happens; None for always.
        least_bytes: Smaller objects are spared.
        requests: Every request that came: its method, path and range.
    """

    kind: str = "none"
    where: str = "."
    times: int | None = None
    least_bytes: int = 0
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    stop: Event = field(default_factory=Event)
    lock: Lock = field(default_factory=Lock)

    def happens(self, path: str, size_bytes: int) -> bool:
        """Whether the fault happens to this request."""
        with self.lock:
            if self.kind == "none" or not re.search(self.where, path) or self.times == 0:
                return False
            if size_bytes < self.least_bytes:
                return False
            if self.times is not None:
                self.times -= 1
            return True

    def paths(self, method: str = "GET") -> list[str]:
        """What was asked for by `method`."""
        return [path for one, path, _ in self.requests if one == method]


class Handler(BaseHTTPRequestHandler):
    """Serves files below `root`, with ranges; `faults` says what goes wrong."""

    protocol_version = "HTTP/1.1"
    root: Path
    faults: Faults

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._serve(body=False)

    def do_GET(self):
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        path = self.path.split("?")[0].lstrip("/")
        self.faults.requests.append((self.command, path, self.headers.get("Range")))
        data = self._load(path)
        if self.faults.happens(path, len(data or b"")):
            with suppress(BrokenPipeError, ConnectionResetError):
                FAULTS[self.faults.kind](self, data)
            return
        self._answer(data, body=body)

    def _load(self, path: str) -> bytes | None:
        file = self.root / path
        return file.read_bytes() if file.is_file() else None

    def _answer(self, data: bytes | None, *, body: bool = True, **headers: str) -> None:
        if data is None:
            self._head(404, 0)
            return
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["0", "0"])[1])
        if start and start >= len(data):
            self._head(416, 0)
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if start else 200, len(data) - start, **headers)
        if body:
            self.wfile.write(data[start:])

    def _head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def leave(self) -> None:
        """Close the connection after this."""
        self.close_connection = True


Fault = Callable[[Handler, bytes | None], None]


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if data else b"?"


def lie(to: Handler, data: bytes | None) -> None:
    """Another byte at the end; something where there is nothing."""
    to._answer(_flipped(data or b""))


def lengthen(to: Handler, data: bytes | None) -> None:
    """More bytes than there are."""
    to._answer((data or b"") + b"more")


def unending(to: Handler, data: bytes | None) -> None:
    """No length, and no end."""
    to._head(200, None)
    to.leave()
    while not to.faults.stop.is_set():
        to.wfile.write(bytes(1 << 16))


def shorten(to: Handler, data: bytes | None) -> None:
    """Half of it, said to be all."""
    to._answer((data or b"")[: len(data or b"") // 2])


def truncate(to: Handler, data: bytes | None) -> None:
    """Half of what the length says."""
    data = data or b"xx"
    to._head(200, len(data))
    to.wfile.write(data[: len(data) // 2])
    to.leave()


def drop(to: Handler, data: bytes | None) -> None:
    """One and a half MiB of what is asked for, then the end."""
    if data is None or len(data) <= 3 << 19:
        to._answer(data)
        return
    start = int((re.match(r"bytes=(\d+)-", to.headers.get("Range", "")) or ["0", "0"])[1])
    extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
    to._head(206 if start else 200, len(data) - start, **extra)
    to.wfile.write(data[start : start + (3 << 19)])
    to.leave()


def stall(to: Handler, data: bytes | None) -> None:
    """Five MiB of it, then nothing for ever."""
    data = data or b"xx"
    to._head(200, len(data))
    to.wfile.write(data[: 5 << 20])
    to.faults.stop.wait()
    to.leave()


def slow(to: Handler, data: bytes | None) -> None:
    """A byte now and then."""
    data = data or bytes(1000)
    to._head(200, len(data))
    for at in range(len(data)):
        to.wfile.write(data[at : at + 1])
        if to.faults.stop.wait(0.02):
            break
    to.leave()


def hang(to: Handler, data: bytes | None) -> None:
    """No answer."""
    to.faults.stop.wait()
    to.leave()


def hang_inside(to: Handler, data: bytes | None) -> None:
    """An answer that stops."""
    to._head(200, len(data or b"xx"))
    to.wfile.write((data or b"xx")[:1])
    to.faults.stop.wait()
    to.leave()


def error(to: Handler, data: bytes | None) -> None:
    """An error of the server."""
    to._head(500, 0)


def busy(to: Handler, data: bytes | None) -> None:
    """No time."""
    to._head(503, 0)


def absent(to: Handler, data: bytes | None) -> None:
    """Not there any more."""
    to._head(404, 0)


def forbidden(to: Handler, data: bytes | None) -> None:
    """Not for everybody."""
    to._head(403, 0)


def wrong_range(to: Handler, data: bytes | None) -> None:
    """Another part than the one asked for."""
    data = data or b"xx"
    to._head(206, len(data) - 1, Content_Range=f"bytes 1-{len(data) - 1}/{len(data)}")
    to.wfile.write(data[1:])


def no_range(to: Handler, data: bytes | None) -> None:
    """All of it, whatever is asked for."""
    del to.headers["Range"]
    to._answer(data)


def zipped(to: Handler, data: bytes | None) -> None:
    """Said to be compressed."""
    to._answer(data or b"", Content_Encoding="gzip")


def garbage(to: Handler, data: bytes | None) -> None:
    """No HTTP at all."""
    to.wfile.write(b"\x00\xff garbage\r\n\r\n")
    to.leave()


def reset(to: Handler, data: bytes | None) -> None:
    """No answer, and no connection any more."""
    to.leave()


def elsewhere(to: Handler, data: bytes | None) -> None:
    """Redirected to itself, for ever."""
    to._head(302, 0, Location=to.path)


def page(to: Handler, data: bytes | None) -> None:
    """A page of a hotel's network."""
    to.send_response(200)
    to.send_header("Content-Type", "text/html")
    to.send_header("Content-Length", "30")
    to.end_headers()
    to.wfile.write(b"<html>please log in</html>    ")


FAULTS: dict[str, Fault] = {
    one.__name__: one
    for one in (
        lie, lengthen, unending, shorten, truncate, drop, stall, slow, hang, hang_inside, error,
        busy, absent, forbidden, wrong_range, no_range, zipped, garbage, reset, elsewhere, page,
    )
}  # fmt: skip


class Between(Handler):
    """Stands between a reader and the server `upstream`; `faults` says what goes wrong."""

    upstream: str

    def _load(self, path: str) -> bytes | None:
        connection = HTTPConnection(self.upstream)
        try:
            headers = {name: value for name, value in self.headers.items() if name != "Range"}
            connection.request("GET", self.path, headers=headers)
            response = connection.getresponse()
            data = response.read()
            return data if response.status == 200 else None
        finally:
            connection.close()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        """A client that goes away is no news."""


def serving(root: Path, faults: Faults | None = None) -> AbstractContextManager[str]:
    """The address of a server of the folder `root`."""
    return _running(type("Serving", (Handler,), {"root": root}), faults or Faults())


def between(upstream: str, faults: Faults) -> AbstractContextManager[str]:
    """The address of a server that stands in front of `upstream`, ``host:port``."""
    return _running(type("Serving", (Between,), {"upstream": upstream}), faults)


@contextmanager
def _running(handler: type[Handler], faults: Faults) -> Iterator[str]:
    handler.faults = faults
    server = Server(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        faults.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
