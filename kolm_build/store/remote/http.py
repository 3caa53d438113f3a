"""A substituter behind a web server: HTTP/1.1 by the standard library, connections kept open.

What the reader of an object may rely on is little: a status, a length or none, a range or none.
Everything odd is a fault, and a fault costs time.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from ssl import SSLCertVerificationError, create_default_context
from threading import Lock
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from kolm_build import __version__
from kolm_build.errors import NetworkError, UsageError
from kolm_build.store.remote.place import FaultError, Limits, Source

MAX_REDIRECTS = 5
_OK, _PARTIAL = 200, 206
_ABSENT = {403, 404, 410}
_REDIRECT = {301, 302, 303, 307, 308}
_RANGE_UNMET = 416
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_DRAIN_BYTES = 64 << 10

Headers = Mapping[str, str]


Signer = Callable[[str, SplitResult, Headers], Headers]
"""From a request's method, address and headers to further headers, by which it is allowed."""


def basic(name: str, password: str) -> Signer:
    """Signs with a name and a password."""
    value = "Basic " + b64encode(f"{name}:{password}".encode()).decode()
    return lambda _method, _url, _headers: {"Authorization": value}


def unsigned(_method: str, _url: SplitResult, _headers: Headers) -> Headers:
    """Signs nothing."""
    return {}


class Web:
    """Requests to one server and to those it redirects to. Threads may share it.

    Args:
        base: An ``http`` or ``https`` address; a name and password in it are used and never shown.
        limits: How long to wait.
        signer: Signs what goes to this server, and nothing that goes to another.
    """

    def __init__(self, base: str, *, limits: Limits, signer: Signer = unsigned) -> None:
        parts = _checked(base)
        if parts.username is not None:
            signer = basic(unquote(parts.username), unquote(parts.password or ""))
        self.base = parts._replace(netloc=_host(parts))
        self._signer = signer
        self._limits = limits
        self._idle: list[HTTPConnection] = []
        self._lock = Lock()

    def at(self, path: str) -> str:
        """The address of `path` below the base."""
        return urlunsplit(self.base._replace(path=f"{self.base.path.rstrip('/')}/{path}"))

    @contextmanager
    def answer(
        self,
        method: str,
        url: str,
        headers: Headers | None = None,
        body: Source | None = None,
    ) -> Iterator[HTTPResponse]:
        """The answer to a request, redirections followed; the connection is used again after it.

        Raises:
            NetworkError: There is no answer; `FaultError` where there may be one later.
        """
        response, connection = self.ask(method, url, headers or {}, body)
        try:
            with _told(url):
                yield response
        except BaseException:
            close(response, connection)
            raise
        self.give_back(response, connection)

    def ask(
        self, method: str, url: str, headers: Headers, body: Source | None = None
    ) -> tuple[HTTPResponse, HTTPConnection]:
        """An answer whose body nobody has read, and the connection it comes by."""
        for _ in range(MAX_REDIRECTS + 1):
            response, connection = self._send(method, urlsplit(url), headers, body)
            target = response.headers.get("Location")
            if response.status not in _REDIRECT or target is None or body is not None:
                if response.status in _PASSING:
                    close(response, connection)
                    raise FaultError("the server failed", file=url, actual=f"{response.status}")
                return response, connection
            self.give_back(response, connection)
            url = _redirected(url, target)
        raise NetworkError("redirected again and again", file=url)

    def give_back(self, response: HTTPResponse, connection: HTTPConnection) -> None:
        """Have a connection whose answer was taken; use it again where nothing is left in it."""
        with suppress(OSError, HTTPException):
            if not response.isclosed():
                response.read(_DRAIN_BYTES)
            # A connection to another server is not kept, nor one that will close.
            if response.isclosed() and connection.sock is not None and self._is_home(connection):
                with self._lock:
                    self._idle.append(connection)
                return
        close(response, connection)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _send(
        self, method: str, url: SplitResult, headers: Headers, body: Source | None
    ) -> tuple[HTTPResponse, HTTPConnection]:
        """One request; a kept connection that the server has closed meanwhile is replaced."""
        while True:
            connection, is_kept = self._connection(url)
            try:
                with _told(urlunsplit(url)):
                    self._request(connection, method, url, headers, body)
                    return connection.getresponse(), connection
            except FaultError:
                connection.close()
                if not is_kept:
                    raise
            except BaseException:
                connection.close()
                raise

    def _request(
        self,
        connection: HTTPConnection,
        method: str,
        url: SplitResult,
        headers: Headers,
        body: Source | None,
    ) -> None:
        sent = {
            "Host": url.netloc,
            "User-Agent": f"kolm/{__version__}",
            "Accept-Encoding": "identity",
            **headers,
        }
        if body is not None:
            sent["Content-Length"] = str(body.size_bytes)
        if _same_server(url, self.base):
            sent.update(self._signer(method, url, sent))
        path = urlunsplit(("", "", url.path or "/", url.query, ""))
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders()
        for piece in body.pieces() if body is not None else ():
            connection.send(piece)

    def _connection(self, url: SplitResult) -> tuple[HTTPConnection, bool]:
        if _same_server(url, self.base):
            with self._lock:
                if self._idle:
                    return self._idle.pop(), True
        timeout = self._limits.timeout_s
        host, port = url.hostname or "", url.port
        if url.scheme == "https":
            context = create_default_context()
            return HTTPSConnection(host, port, timeout=timeout, context=context), False
        return HTTPConnection(host, port, timeout=timeout), False

    def _is_home(self, connection: HTTPConnection) -> bool:
        port = self.base.port or (443 if self.base.scheme == "https" else 80)
        is_tls = isinstance(connection, HTTPSConnection)
        home = (self.base.hostname, port, self.base.scheme == "https")
        return (connection.host, connection.port, is_tls) == home


class WebStream:
    """An object's bytes from a server.

    Args:
        web: Whose connection it is.
        response: The answer, its body not read.
        connection: How it comes.
        url: Its address, for messages.
    """

    def __init__(
        self, web: Web, response: HTTPResponse, connection: HTTPConnection, url: str
    ) -> None:
        self._web = web
        self._response = response
        self._connection = connection
        self._url = url
        self.start, self.size_bytes = _extent(response, url)

    def readinto(self, buffer: memoryview) -> int:
        """See `Stream`. It gives what one look at the socket gives, so that slowness shows."""
        response = self._response
        with _told(self._url):
            if response.isclosed() or response.length == 0:
                response.read()  # closes it
                return 0
            if response.chunked:
                data = response.read1(len(buffer))
                buffer[: len(data)] = data
                return len(data)
            most = len(buffer) if response.length is None else min(len(buffer), response.length)
            count = response.fp.readinto1(buffer[:most])
            if count == 0:
                self._connection.close()
            elif response.length is not None:
                response.length -= count
            return count

    def close(self) -> None:
        """See `Stream`."""
        if self._response.isclosed():
            self._web.give_back(self._response, self._connection)
        else:
            close(self._response, self._connection)


class WebPlace:
    """Files behind a web server, read by GET and HEAD.

    Args:
        web: The server.
    """

    is_network = True

    def __init__(self, web: Web) -> None:
        self._web = web

    def open(self, path: str, *, start: int = 0) -> WebStream | None:
        """See `Place`."""
        return open_object(self._web, self._web.at(path), start)

    def has(self, path: str) -> bool:
        """See `Place`."""
        return has_object(self._web, self._web.at(path))

    def close(self) -> None:
        """See `Place`."""
        self._web.close()


class HttpPlace(WebPlace):
    """Files behind a web server, to be read.

    Args:
        url: Its address.
        limits: How long to wait.
    """

    def __init__(self, url: str, *, limits: Limits) -> None:
        super().__init__(Web(url, limits=limits))

    @property
    def url(self) -> str:
        """Its address."""
        return urlunsplit(self._web.base)

    def write(self, path: str, source: Source) -> None:
        """Refuse: a web server is to be read.

        Raises:
            UsageError: Always.
        """
        del path, source
        raise UsageError(
            "a web server is to be read from only",
            file=self.url,
            advice="Copy to the folder, bucket or registry that it serves.",
        )


def open_object(web: Web, url: str, start: int, headers: Headers | None = None) -> WebStream | None:
    """An object's bytes by GET, from `start` on where the server knows ranges."""
    asked = dict(headers or {}) | ({"Range": f"bytes={start}-"} if start else {})
    response, connection = web.ask("GET", url, asked)
    if response.status == _RANGE_UNMET:
        # Nothing is left from there on: the object is shorter than it should be.
        web.give_back(response, connection)
        raise FaultError("the server has no such range", file=url, actual=f"from {start}")
    if response.status in _ABSENT:
        web.give_back(response, connection)
        return None
    try:
        _check_plain(response, url)
        return WebStream(web, response, connection, url)
    except BaseException:
        close(response, connection)
        raise


def close(response: HTTPResponse, connection: HTTPConnection) -> None:
    """Give up an answer, whatever is left of it."""
    with suppress(OSError, HTTPException):
        response.close()
    connection.close()


def has_object(web: Web, url: str, headers: Headers | None = None) -> bool:
    """Whether there is an object, by HEAD."""
    with web.answer("HEAD", url, headers) as response:
        if response.status in _ABSENT:
            return False
        _check_plain(response, url)
        return True


def _check_plain(response: HTTPResponse, url: str) -> None:
    if response.status not in (_OK, _PARTIAL):
        raise NetworkError("an answer that cannot be used", file=url, actual=str(response.status))
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise NetworkError("the server changes what it sends", file=url, actual=encoding)


def _extent(response: HTTPResponse, url: str) -> tuple[int, int | None]:
    """Where the body of an answer starts in the object, and how large that is."""
    if response.status == _OK:
        return 0, response.length
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not found:
        raise FaultError("a part of an object without its place", file=url)
    first, last, total = int(found[1]), int(found[2]), found[3]
    if response.length is not None and response.length != last + 1 - first:
        raise FaultError("a range of another length than it says", file=url)
    return first, None if total == "*" else int(total)


def _checked(base: str) -> SplitResult:
    try:
        parts = urlsplit(base)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        usable, parts = False, urlsplit("")
    if not usable or parts.query or parts.fragment:
        shown = re.sub(r"//[^/@]*@", "//", base)
        raise UsageError("not the address of a substituter", actual=shown[:200])
    return parts


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _same_server(one: SplitResult, other: SplitResult) -> bool:
    return (one.scheme, one.netloc) == (other.scheme, other.netloc)


def _redirected(url: str, target: str) -> str:
    joined = urljoin(url, target)
    parts = urlsplit(joined)
    if parts.scheme not in ("http", "https") or (
        urlsplit(url).scheme == "https" and parts.scheme == "http"
    ):
        raise NetworkError(
            "redirected to where nothing is read from", file=url, actual=joined[:200]
        )
    return urlunsplit(parts._replace(netloc=_host(parts)))


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What a socket says, as errors of a place."""
    try:
        yield
    except SSLCertVerificationError as error:
        raise NetworkError(
            "the server's certificate does not hold", file=url, actual=error.verify_message
        ) from error
    except TimeoutError as error:
        raise FaultError("the server does not answer", file=url) from error
    except (OSError, HTTPException, ValueError) as error:
        actual = str(error) or type(error).__name__
        raise FaultError("the server cannot be reached", file=url, actual=actual[:200]) from error
