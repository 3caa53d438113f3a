"""A substituter in a repository of an OCI registry: each file a manifest with one layer.

Registries know SHA-256 and tags. The file ``a/b/c`` is the one layer of the manifest with the tag
``a.b.c``; the reader follows the tag to the layer, and believes neither.
"""

from __future__ import annotations

import json
from hashlib import sha256
from http.client import HTTPResponse
from threading import Lock
from urllib.parse import urljoin, urlsplit, urlunsplit

from kolm_build.core import strict_json
from kolm_build.errors import InvalidRecordError, NetworkError
from kolm_build.store.remote.credentials import Credentials
from kolm_build.store.remote.http import Web, WebStream, basic, open_object, unsigned
from kolm_build.store.remote.place import Bytes, FaultError, Limits, Source

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.kolm.substituter.v1"
LAYER = "application/octet-stream"
EMPTY = "application/vnd.oci.empty.v1+json"
MAX_MANIFEST_BYTES = 1 << 16
_ABSENT = {404}
_OK = 200
_STARTED = 202
_CREATED = 201


class RegistryPlace:
    """Files in a repository.

    Args:
        base: ``http(s)://host/name``.
        limits: How long to wait.
        credentials: A name and password; without, it is asked as anybody.
    """

    is_network = True

    def __init__(self, base: str, *, limits: Limits, credentials: Credentials | None) -> None:
        parts = urlsplit(base)
        name = parts.path.strip("/")
        signer = basic(credentials.name, credentials.secret) if credentials else unsigned
        home = urlunsplit(parts._replace(path=f"/v2/{name}"))
        self._web = Web(home, limits=limits, signer=signer)
        scheme = "oci" if parts.scheme == "https" else "oci+http"
        self._shown = f"{scheme}://{self._web.base.netloc}/{name}"
        self._layers: dict[str, str] = {}
        self._has_empty = False
        self._lock = Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return self._shown

    def open(self, path: str, *, start: int = 0) -> WebStream | None:
        """See `Place`."""
        layer = self._layer(path)
        if layer is None:
            return None
        return open_object(self._web, self._web.at(f"blobs/{layer}"), start)

    def has(self, path: str) -> bool:
        """See `Place`."""
        with self._web.answer("HEAD", self._manifest(path), {"Accept": MANIFEST}) as response:
            return _there(response, self._manifest(path))

    def write(self, path: str, source: Source) -> None:
        """See `Place`."""
        digest = _sha256_of(source)
        self._put_blob(digest, source)
        empty = Bytes(b"{}")
        if not self._has_empty:
            self._put_blob(_sha256_of(empty), empty)
            self._has_empty = True
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT,
            "config": {"mediaType": EMPTY, "digest": _sha256_of(empty), "size": 2},
            "layers": [{"mediaType": LAYER, "digest": digest, "size": source.size_bytes}],
        }
        body = Bytes(strict_json.dumps(manifest))
        with self._web.answer(
            "PUT", self._manifest(path), {"Content-Type": MANIFEST}, body
        ) as response:
            _expect(response, _CREATED, self._manifest(path))
        with self._lock:
            self._layers.pop(path, None)

    def close(self) -> None:
        """See `Place`."""
        self._web.close()

    def _manifest(self, path: str) -> str:
        return self._web.at(f"manifests/{path.replace('/', '.')}")

    def _layer(self, path: str) -> str | None:
        """The digest of the layer that is a file; asked once, so that going on is one request."""
        with self._lock:
            known = self._layers.get(path)
        if known is not None:
            return known
        url = self._manifest(path)
        with self._web.answer("GET", url, {"Accept": MANIFEST}) as response:
            if not _there(response, url):
                return None
            data = response.read(MAX_MANIFEST_BYTES + 1)
        layer = _layer_of(data, url)
        with self._lock:
            # What `real/` holds may be replaced; all else is under a name that its content proves.
            if not path.startswith("real/"):
                self._layers[path] = layer
        return layer

    def _put_blob(self, digest: str, source: Source) -> None:
        url = self._web.at(f"blobs/{digest}")
        with self._web.answer("HEAD", url) as response:
            if response.status == _OK:
                return
        start = self._web.at("blobs/uploads/")
        with self._web.answer("POST", start, body=Bytes(b"")) as response:
            _expect(response, _STARTED, start)
            place = urljoin(start, response.headers.get("Location", ""))
        upload = f"{place}{'&' if '?' in place else '?'}digest={digest}"
        with self._web.answer("PUT", upload, {"Content-Type": LAYER}, source) as response:
            _expect(response, _CREATED, url)


def _there(response: HTTPResponse, url: str) -> bool:
    if response.status in _ABSENT:
        return False
    _expect(response, _OK, url)
    return True


def _expect(response: HTTPResponse, status: int, url: str) -> None:
    if response.status != status:
        raise NetworkError(
            "the registry refuses",
            file=url,
            expected=str(status),
            actual=f"{response.status} {response.read(200).decode(errors='replace')}".strip(),
            advice="KOLM_OCI_USER and KOLM_OCI_PASSWORD open it, where it asks for a password.",
        )


def _layer_of(data: bytes, url: str) -> str:
    """The digest of the one layer of a manifest, whichever tool wrote it."""
    try:
        if len(data) > MAX_MANIFEST_BYTES:
            raise InvalidRecordError("too large for a manifest")
        match json.loads(data):
            case {"layers": [{"digest": str(digest)}]} if _is_sha256(digest):
                return digest
            case _:
                pass
    except (ValueError, RecursionError, InvalidRecordError):
        pass
    raise FaultError("not the manifest of a substituter's file", file=url)


def _is_sha256(text: str) -> bool:
    hexes = text.removeprefix("sha256:")
    return text.startswith("sha256:") and len(hexes) == 64 and set(hexes) <= set("0123456789abcdef")


def _sha256_of(source: Source) -> str:
    hasher = sha256()
    for piece in source.pieces():
        hasher.update(piece)
    return f"sha256:{hasher.hexdigest()}"
