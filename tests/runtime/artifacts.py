"""A container with a model inside, as `package` lays it out."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

from kolm_build.core.archive import MANIFEST, Member, layout


def write_artifact(path: Path, model: Path) -> Path:
    """The file `path`: the folder `model` below ``model/``, and a manifest."""
    content = {f"model/{file.name}": file.read_bytes() for file in model.iterdir()}
    content[MANIFEST] = b"{}"
    members = [
        Member(path=name, size=len(data), crc32=crc32(data)) for name, data in content.items()
    ]
    plan = layout(members)
    parts = [piece.lead + content[piece.member.path] for piece in plan.placed]
    path.write_bytes(b"".join(parts) + plan.tail)
    return path
