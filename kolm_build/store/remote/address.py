"""From a substituter's address to the place (spec/substituter.md)."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from kolm_build.errors import UsageError
from kolm_build.store.remote.credentials import Credentials
from kolm_build.store.remote.place import Limits, Place

KINDS = "file:FOLDER, http(s)://HOST/PATH, s3://BUCKET/PREFIX, oci://HOST/NAME"


def open_place(
    address: str,
    *,
    limits: Limits,
    bucket: Credentials | None = None,
    registry: Credentials | None = None,
) -> Place:
    """The place at `address`; nothing is asked yet.

    Args:
        address: As spec/substituter.md has them.
        limits: How long to wait for it.
        bucket: What opens a bucket; without, requests are not signed.
        registry: What opens a registry; without, it is asked as anybody.

    Raises:
        UsageError: It is no address of a substituter.
    """
    scheme, colon, rest = address.partition(":")
    if scheme == "file" and colon and rest:
        return _folder(rest)
    if scheme in ("http", "https"):
        from kolm_build.store.remote.http import HttpPlace

        return HttpPlace(address, limits=limits)
    if scheme == "s3":
        return _bucket(address, limits, bucket)
    if scheme in ("oci", "oci+http"):
        from kolm_build.store.remote.registry import RegistryPlace

        base = ("http:" if scheme == "oci+http" else "https:") + rest
        return RegistryPlace(base, limits=limits, credentials=registry)
    raise UsageError(
        "not the address of a substituter", expected=KINDS, actual=ascii(address)[:200]
    )


def is_network(address: str) -> bool:
    """Whether asking the place at `address` touches the network."""
    return not address.startswith("file:")


def _folder(rest: str) -> Place:
    from kolm_build.store.remote.folder import FolderPlace

    if not rest.startswith("//"):
        return FolderPlace(unquote(rest))
    parts = urlsplit(f"file:{rest}")
    if parts.netloc not in ("", "localhost"):
        raise UsageError(
            "a file: address names a folder of this machine",
            expected="file:///folder or file:folder",
            actual=f"file:{rest}"[:200],
        )
    return FolderPlace(unquote(parts.path))


def _bucket(address: str, limits: Limits, credentials: Credentials | None) -> Place:
    from kolm_build.store.remote.bucket import BucketPlace

    parts = urlsplit(address)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    endpoint = options.pop("endpoint", "https://s3.amazonaws.com")
    region = options.pop("region", "us-east-1")
    if options or not parts.netloc:
        raise UsageError(
            "not the address of a bucket",
            expected="s3://BUCKET/PREFIX?endpoint=URL&region=NAME",
            actual=ascii(address)[:200],
        )
    return BucketPlace(
        endpoint,
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        region=region,
        limits=limits,
        credentials=credentials,
    )
