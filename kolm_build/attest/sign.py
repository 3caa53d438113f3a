"""Signing an artifact: it is verified, then written again with one more attestation.

The body is copied, never changed. The same key on the same artifact gives the same file.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

from kolm_build.attest.attestation import make_attestation
from kolm_build.attest.container import Container
from kolm_build.attest.keys import SigningKey
from kolm_build.attest.trust import STATEMENTS
from kolm_build.attest.verify import verify_container
from kolm_build.core.archive import ATTESTATIONS, Layout, Member, layout
from kolm_build.errors import MachineError, NoSpaceError, UsageError
from kolm_build.reading import PIECE_BYTES


def sign_artifact(unsigned: Path, dest: Path, *, key: SigningKey, role: str = "builder") -> None:
    """Write the artifact `unsigned` to `dest` with an attestation by `key`.

    Args:
        unsigned: An artifact, with or without attestations; it may be `dest` itself.
        dest: The file to write, whole or not at all.
        key: Who vouches for it.
        role: In which role: a key of `STATEMENTS`.

    Raises:
        VerificationError: The artifact does not hold, so nothing is signed.
        UsageError: There is no such role.
        MachineError: The file cannot be written.
    """
    if role not in STATEMENTS:
        raise UsageError("unknown role", expected=", ".join(STATEMENTS), actual=repr(role))
    with Container.open(unsigned) as container:
        verify_container(container, trust=None)
        attestations = {path: container.attestation(path) for path in container.attestations}
        path, data = make_attestation(container, key=key, role=role)
        try:
            _write(container, attestations | {path: data}, dest)
        except OSError as error:
            raise _machine_error(error, dest) from error


def attach(unsigned: Path, dest: Path, attestations: Mapping[str, bytes]) -> None:
    """Write the artifact `unsigned` to `dest` with attestations that others made.

    Nobody is trusted by this: `verify` judges them against the reader's own trust.

    Args:
        unsigned: An artifact; its own attestations are kept.
        dest: The file to write, whole or not at all.
        attestations: Member path to bytes.

    Raises:
        VerificationError: The artifact does not hold.
        MachineError: The file cannot be written.
    """
    with Container.open(unsigned) as container:
        verify_container(container, trust=None)
        own = {path: container.attestation(path) for path in container.attestations}
        try:
            _write(container, own | dict(attestations), dest)
        except OSError as error:
            raise _machine_error(error, dest) from error


def _write(container: Container, attestations: Mapping[str, bytes], dest: Path) -> None:
    fd, name = tempfile.mkstemp(dir=dest.parent, prefix=f".{dest.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as out:
            plan = _layout(container, attestations)
            _copy(container.fd, out.fileno(), _body_end(plan))
            out.seek(0, os.SEEK_END)
            for piece in plan.placed:
                if piece.member.path in attestations:
                    out.write(piece.lead + attestations[piece.member.path])
            out.write(plan.tail)
            out.flush()
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())
        temporary.replace(dest)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(dest.parent)


def _layout(container: Container, attestations: Mapping[str, bytes]) -> Layout:
    """The layout with these attestations; the body lies where it did."""
    body = [
        piece.member
        for path, piece in container.placed.items()
        if not path.startswith(ATTESTATIONS)
    ]
    added = [
        Member(path=path, size=len(data), crc32=crc32(data)) for path, data in attestations.items()
    ]
    return layout(body + added)


def _body_end(plan: Layout) -> int:
    """Where the last member before the attestations ends."""
    return max(
        piece.offset + piece.member.size
        for piece in plan.placed
        if not piece.member.path.startswith(ATTESTATIONS)
    )


def _copy(source: int, dest: int, size: int) -> None:
    """The first `size` bytes of `source`, by the kernel where it can: a clone costs nothing."""
    at = 0
    while at < size:
        try:
            done = os.copy_file_range(source, dest, size - at, at, at)
        except OSError:
            done = os.pwrite(dest, os.pread(source, min(PIECE_BYTES, size - at), at), at)
        if not done:
            raise OSError(errno.EIO, "the artifact became shorter while it was read")
        at += done


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _machine_error(error: OSError, dest: Path) -> MachineError:
    kind = NoSpaceError if error.errno in {errno.ENOSPC, errno.EDQUOT} else MachineError
    return kind("the signed artifact cannot be written", file=str(dest), actual=error.strerror)
