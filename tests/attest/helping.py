"""Keys from fixed seeds, trust files, and artifacts put together again after a change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from zlib import crc32

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kolm_build.attest.keys import PublicKey, SigningKey
from kolm_build.attest.trust import TrustPolicy, parse_trust
from kolm_build.core import archive, strict_json

Members = dict[str, bytes]


def key(number: int) -> SigningKey:
    """The key of a seed."""
    private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return SigningKey(PublicKey(private.public_key().public_bytes_raw()), private.sign)


def trust(*principals: tuple[str, str, int], **thresholds: int) -> TrustPolicy:
    """A policy of principals (name, role, key number); one builder is asked for by default."""
    lines = ["version = 1", "[threshold]"]
    lines += [f"{role} = {count}" for role, count in (thresholds or {"builder": 1}).items()]
    for name, role, number in principals:
        lines += ["[[principal]]", f'name = "{name}"', f'roles = ["{role}"]']
        lines += [f'keys = ["{key(number).public}"]']
    return parse_trust("\n".join(lines).encode(), "trust.toml")


CI = ("ci", "builder", 1)


def members(path: Path) -> Members:
    """The members of the artifact at `path`, by path, in order."""
    data = path.read_bytes()
    plan = archive.parse(lambda offset, length: data[offset : offset + length], len(data))
    return {
        piece.member.path: data[piece.offset : piece.offset + piece.member.size]
        for piece in plan.placed
    }


def write(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write the container of `files` to `path`."""
    plan = archive.layout(
        archive.Member(path=name, size=len(data), crc32=crc32(data)) for name, data in files.items()
    )
    parts = (piece.lead + files[piece.member.path] for piece in plan.placed)
    path.write_bytes(b"".join(parts) + plan.tail)
    return path


def entry(path: str, data: bytes) -> dict[str, object]:
    """A member as the manifest lists it."""
    return {
        "path": path,
        "size": len(data),
        "sha256": f"sha256:{sha256(data).hexdigest()}",
        "b3": f"b3:{blake3(data).hexdigest()}",
        "crc32": crc32(data),
    }


def forge(
    source: Path,
    dest: Path,
    change: Callable[[Members], None] = lambda _: None,
    claims: Callable[[dict[str, object]], None] = lambda _: None,
) -> Path:
    """The artifact at `source` after `change`, with a manifest that lists what is there now.

    This is what somebody who can write a file but has no key, or a builder who lies, can make:
    every digest is right, and only the evidence can show that something is not.
    """
    files = {name: data for name, data in members(source).items() if not name.startswith("attest")}
    change(files)
    manifest: dict[str, object] = strict_json.loads(files.pop("manifest.json"))  # type: ignore[assignment]
    manifest["members"] = [entry(name, files[name]) for name in sorted(files, key=archive.order)]
    claims(manifest)
    return write(dest, files | {"manifest.json": strict_json.dumps(manifest)})
