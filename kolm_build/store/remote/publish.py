"""What a store has, into a place: first what is named, then what names it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from kolm_build.core import cbor
from kolm_build.core.digest import Digest
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError, StoreFormatError
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.give import Blob, Giver
from kolm_build.store.inventory import Inventory, is_small
from kolm_build.store.remote.fetch import OnBytes
from kolm_build.store.remote.layout import (
    FORMAT,
    FORMAT_PATH,
    MAX_RECORD_BYTES,
    blob_path,
    claims_path,
    derivation_path,
    log_path,
    pack_path,
    tree_path,
)
from kolm_build.store.remote.many import at_once
from kolm_build.store.remote.place import Bytes, Limits, Place, Source
from kolm_build.store.remote.pour import patiently, read

VERSION = 1


def check_format(place: Place, limits: Limits) -> bool:
    """Whether a place is a substituter; False where nothing says what it is.

    Raises:
        NetworkError: The place failed.
        StoreFormatError: It is something else, or a substituter of another version.
    """
    found = read(place, FORMAT_PATH, most=4096, limits=limits)
    if found is None:
        return False
    if found != FORMAT:
        raise StoreFormatError(
            "no substituter, or one of another version",
            file=f"{place.url}/{FORMAT_PATH}",
            expected=repr(FORMAT.decode()),
            actual=ascii(found[:60]),
        )
    return True


def read_claims(place: Place, resolved: Digest, limits: Limits) -> tuple[StoredRealisation, ...]:
    """Every claim that a place has about a resolved derivation; nobody has said they are true.

    Raises:
        NetworkError: The place failed.
        InvalidRecordError: What it gave holds no claims, or claims about something else.
    """
    path = claims_path(resolved)
    data = read(place, path, most=MAX_RECORD_BYTES, limits=limits)
    if data is None:
        return ()
    try:
        fields = Fields(cbor.decode(data))
        fields.version(VERSION)
        claims = fields.records("claims", _claim)
        fields.done()
        if any(claim.realisation.resolved != resolved for claim in claims):
            raise InvalidRecordError("a claim about something else")
    except InvalidRecordError as error:
        raise error.in_file(f"{place.url}/{path}") from None
    return claims


def _claim(value: object) -> StoredRealisation:
    if type(value) is not bytes:
        raise InvalidRecordError("a claim's file is bytes")
    return StoredRealisation.decode(value)


def encode_claims(claims: Iterable[StoredRealisation]) -> bytes:
    """The one file of the claims about a resolved derivation."""
    return cbor.encode({"v": VERSION, "claims": sorted({claim.encode() for claim in claims})})


class Publisher:
    """Copies from one store to one place.

    Args:
        place: Where to.
        giver: The store's objects.
        limits: How patient to be.
        jobs: Objects at once.
        on_bytes: Told how far it is.
    """

    def __init__(
        self, place: Place, giver: Giver, *, limits: Limits, jobs: int, on_bytes: OnBytes
    ) -> None:
        self._place = place
        self._giver = giver
        self._limits = limits
        self._jobs = jobs
        self._on_bytes = on_bytes

    def begin(self) -> None:
        """Make the place a substituter, unless it is one.

        Raises:
            StoreFormatError: It is something else.
        """
        if not check_format(self._place, self._limits):
            self._write(FORMAT_PATH, Bytes(FORMAT))

    def tree(self, tree: Digest) -> int:
        """Copy what the place does not have of a tree; how many bytes went."""
        if self._has(tree_path(tree)):
            return 0
        inventory, count = self._packed(self._giver.inventory(tree))
        blobs = [
            Blob(self._giver, b3, size)
            for b3, size in sorted(inventory.leaves().items(), key=lambda pair: (-pair[1], pair[0]))
            if not (inventory.packs and is_small(size))
        ]
        total = count + sum(blob.size_bytes for blob in blobs)
        gone = done = count
        for blob, is_new in at_once(blobs, self._blob, jobs=self._jobs):
            done += blob.size_bytes
            gone += blob.size_bytes if is_new else 0
            self._on_bytes(done, total)
        data = inventory.encode()
        self._write(tree_path(tree), Bytes(data))
        return gone + len(data)

    def _packed(self, inventory: Inventory) -> tuple[Inventory, int]:
        """The inventory with its packs, which are there; how many bytes went.

        One pack is made at a time, while others are on their way.
        """
        packs, count = [], 0
        for b3, size, is_new in at_once(self._giver.packs(inventory), self._pack, jobs=self._jobs):
            packs.append((b3, size))
            count += size if is_new else 0
        return replace(inventory, packs=tuple(sorted(packs))), count

    def _pack(self, data: bytes) -> tuple[Digest, int, bool]:
        b3 = Digest.of_blob(data)
        is_new = not self._has(pack_path(b3))
        if is_new:
            self._write(pack_path(b3), Bytes(data))
        return b3, len(data), is_new

    def _blob(self, blob: Blob) -> tuple[Blob, bool]:
        path = blob_path(blob.b3)
        if self._has(path):
            return blob, False
        self._write(path, blob)
        return blob, True

    def record(self, digest: Digest) -> None:
        """Copy a derivation's record."""
        path = derivation_path(digest)
        if not self._has(path):
            self._write(path, Bytes(self._giver.derivation(digest)))

    def log(self, digest: Digest, data: bytes) -> None:
        """Copy a log."""
        if not self._has(log_path(digest)):
            self._write(log_path(digest), Bytes(data))

    def claims(self, resolved: Digest, claims: Sequence[StoredRealisation]) -> None:
        """Add claims about one resolved derivation to those that are there."""
        there = read_claims(self._place, resolved, self._limits)
        data = encode_claims([*there, *claims])
        if data != encode_claims(there):
            self._write(claims_path(resolved), Bytes(data))

    def _has(self, path: str) -> bool:
        return patiently(lambda: self._place.has(path), self._limits)

    def _write(self, path: str, source: Source) -> None:
        patiently(lambda: self._place.write(path, source), self._limits)
