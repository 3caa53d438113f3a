"""A container with a model inside, as `package` lays it out."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from zlib import crc32

from blake3 import blake3

from kolm_build.core.archive import MANIFEST, Member, layout, order
from kolm_build.core.manifest import Manifest, ManifestMember


def write_artifact(path: Path, model: Path, *, numerics: str = "portable-1") -> Path:
    """The file `path`: the folder `model` below ``model/``, and a manifest that names it all."""
    content = {f"model/{file.name}": file.read_bytes() for file in model.iterdir()}
    content = dict(sorted(content.items(), key=lambda item: order(item[0])))
    content[MANIFEST] = _manifest(content, numerics)
    members = [
        Member(path=name, size=len(data), crc32=crc32(data)) for name, data in content.items()
    ]
    plan = layout(members)
    parts = [piece.lead + content[piece.member.path] for piece in plan.placed]
    path.write_bytes(b"".join(parts) + plan.tail)
    return path


def _manifest(content: dict[str, bytes], numerics: str) -> bytes:
    members = tuple(
        ManifestMember(
            path=name,
            size=len(data),
            sha256=f"sha256:{sha256(data).hexdigest()}",
            b3=f"b3:{blake3(data).hexdigest()}",
            crc32=crc32(data),
        )
        for name, data in content.items()
    )
    return Manifest(
        name="tiny",
        members=members,
        weights_id="b3:" + 64 * "0",
        numerics=numerics,
        licence="apache-2.0",
        kscore={"k": "1"},
    ).encode()
