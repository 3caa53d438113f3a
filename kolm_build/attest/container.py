"""An artifact's file, opened once and read from that one descriptor (spec/verify.md).

`Container` has checked every byte outside the members when it exists. Members are hashed in big
pieces by threads, so memory stays bounded and several processors help; what is kept of a member
is a part of the very bytes that were hashed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread
from typing import Self
from zlib import crc32

from kolm_build.attest.envelope import MAX_BYTES as MAX_ENVELOPE_BYTES
from kolm_build.core.archive import ATTESTATIONS, MANIFEST, Layout, Placed, parse
from kolm_build.core.manifest import MAX_BYTES, Manifest, ManifestMember
from kolm_build.errors import (
    ContainerError,
    ContentError,
    InvalidRecordError,
    KolmError,
    ManifestError,
    SignatureError,
    UnsupportedArtifactError,
    UnsupportedVersionError,
    VerificationError,
)
from kolm_build.reading import PIECE_BYTES, open_regular, pread

MAX_THREADS = 8
HASHED_BYTES = 1 << 22  # at once; a smaller piece asks for the interpreter's lock too often
MAX_ATTESTATIONS = 64
_NO_ARTIFACT = "It is no artifact, or was damaged or cut off on its way: get it again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """An open artifact.

    Attributes:
        fd: The open descriptor.
        size: The file's number of bytes.
        manifest_bytes: The bytes of ``manifest.json``.
        manifest: What they say.
        entries: The manifest's members by path: exactly the body members that are there.
        placed: Every member of the container by path.
    """

    fd: int
    size: int
    manifest_bytes: bytes
    manifest: Manifest
    entries: Mapping[str, ManifestMember]
    placed: Mapping[str, Placed]

    @classmethod
    def open(cls, path: Path) -> Self:
        """The artifact in the file `path`.

        Raises:
            ContainerError: It is not laid out as an artifact.
            ManifestError: The manifest is malformed, or lists other members than there are.
            SignatureError: It has too many attestations.
            UnsupportedArtifactError: It is of a format this program does not read.
        """
        fd = open_regular(path, ContainerError)
        try:
            return cls._read(fd)
        except ContainerError as error:
            os.close(fd)
            error.advice = error.advice or _NO_ARTIFACT
            raise error.in_file(str(path)) from None
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _read(cls, fd: int) -> Self:
        size = os.fstat(fd).st_size
        try:
            layout = parse(lambda offset, length: pread(fd, offset, length), size)
        except InvalidRecordError as error:
            raise as_verification(error, ContainerError) from None
        data = _manifest_bytes(fd, layout)
        try:
            manifest = Manifest.decode(data)
        except UnsupportedVersionError as error:
            raise as_verification(error, UnsupportedArtifactError).in_file(MANIFEST) from None
        except InvalidRecordError as error:
            raise as_verification(error, ManifestError).in_file(MANIFEST) from None
        made = cls(
            fd=fd,
            size=size,
            manifest_bytes=data,
            manifest=manifest,
            entries={entry.path: entry for entry in manifest.members},
            placed={piece.member.path: piece for piece in layout.placed},
        )
        made._check_members()
        if len(made.attestations) > MAX_ATTESTATIONS:
            raise SignatureError("too many attestations", expected=f"at most {MAX_ATTESTATIONS}")
        return made

    @property
    def attestations(self) -> tuple[str, ...]:
        """The paths of the members after the body."""
        return tuple(path for path in self.placed if path.startswith(ATTESTATIONS))

    def attestation(self, path: str) -> bytes:
        """The bytes of an attestation, which the manifest does not list."""
        piece = self.placed[path]
        if piece.member.size > MAX_ENVELOPE_BYTES:
            raise SignatureError("too large", file=path, actual=f"{piece.member.size} bytes")
        data = pread(self.fd, piece.offset, piece.member.size)
        if crc32(data) != piece.member.crc32:
            raise ContentError("wrong CRC-32", file=path)
        return data

    def checked(self, path: str, keep: int, stop: Event | None = None) -> bytes:
        """The first `keep` bytes of a body member whose SHA-256 is the manifest's.

        Args:
            path: The member.
            keep: How much of it to keep in memory.
            stop: Where it is set, give up quietly.

        Raises:
            ContentError: The bytes are not those that the manifest names.
        """
        entry, offset = self.entries[path], self.placed[path].offset
        hasher, kept, at = sha256(), bytearray(), 0
        # One buffer for all pieces: a fresh one a piece costs more page faults than reading does.
        buffer = memoryview(bytearray(min(HASHED_BYTES, entry.size)))
        while at < entry.size and not (stop and stop.is_set()):
            piece = buffer[: os.preadv(self.fd, [buffer[: entry.size - at]], offset + at)]
            if not piece:
                raise ContentError("the file became shorter while it was read", file=path)
            hasher.update(piece)
            kept += piece[: max(0, keep - at)]
            at += len(piece)
        if at == entry.size and f"sha256:{hasher.hexdigest()}" != entry.sha256:
            raise ContentError(
                "the bytes are not those of the manifest",
                file=path,
                expected=entry.sha256,
                actual=f"sha256:{hasher.hexdigest()}",
            )
        return bytes(kept)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_members(self) -> None:
        """The container holds the manifest, the members it lists, and attestations."""
        there = self.placed.keys() - {MANIFEST, *self.attestations}
        for path in sorted(self.entries.keys() ^ there):
            reason = "missing" if path in self.entries else "not listed in the manifest"
            raise ManifestError(f"a member is {reason}", file=path)
        for path, entry in self.entries.items():
            member = self.placed[path].member
            if member != entry.member:
                raise ManifestError(
                    "the container and the manifest disagree",
                    file=path,
                    expected=f"{entry.size} bytes, CRC-32 {entry.crc32:08x}",
                    actual=f"{member.size} bytes, CRC-32 {member.crc32:08x}",
                )


class Hashing:
    """Members being checked against the manifest by threads, the largest first.

    What is smaller than a piece together is not worth a thread and is checked at once.

    Args:
        container: The open artifact.
        paths: The members to check.
        keep: How many of a member's first bytes `result` gives.
    """

    def __init__(
        self, container: Container, paths: Iterable[str], *, keep: Callable[[str], int]
    ) -> None:
        self._container = container
        self._keep = keep
        self._left = sorted(paths, key=lambda path: container.entries[path].size)
        self._stop = Event()
        self._kept: dict[str, bytes] = {}
        self._errors: list[BaseException] = []
        size = sum(container.entries[path].size for path in self._left)
        count = min(os.cpu_count() or 1, MAX_THREADS, len(self._left), size // PIECE_BYTES)
        self._threads = [Thread(target=self._work, daemon=True) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        if not self._threads:
            self._work()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._join()

    def result(self) -> Mapping[str, bytes]:
        """The first bytes of every member, once all of them are what the manifest says.

        Raises:
            ContentError: One is not.
        """
        self._join()
        self.raise_found()
        return self._kept

    def raise_found(self) -> None:
        """Raise what a thread has found so far, so that nobody works on for nothing."""
        if self._errors:
            raise self._errors[0]

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                path = self._left.pop()
                self._kept[path] = self._container.checked(path, self._keep(path), self._stop)
        except IndexError:
            return  # nothing left
        except BaseException as error:  # noqa: BLE001 - the thread's door; result raises it
            self._errors.append(error)
            self._stop.set()


def as_verification(error: KolmError, kind: type[VerificationError]) -> VerificationError:
    """`error`, found in an artifact, as an error of the `kind` that verifying raises."""
    return kind(
        error.reason,
        file=error.file,
        where=error.where,
        expected=error.expected,
        actual=error.actual,
        advice=error.advice,
    )


def _manifest_bytes(fd: int, layout: Layout) -> bytes:
    first = layout.placed[0] if layout.placed else None
    if first is None or first.member.path != MANIFEST:
        raise ManifestError("there is no manifest", file=MANIFEST)
    if first.member.size > MAX_BYTES:
        raise ManifestError("too large", file=MANIFEST, actual=f"{first.member.size} bytes")
    data = pread(fd, first.offset, first.member.size)
    if crc32(data) != first.member.crc32:
        raise ContentError("wrong CRC-32", file=MANIFEST)
    return data
