"""What an export reads: a model folder with the manifest of an artifact beside it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from zlib import crc32

from blake3 import blake3

from kolm_build.core.archive import order
from kolm_build.core.kscore import TERMS
from kolm_build.core.manifest import Manifest, ManifestMember
from kolm_build.steps import import_gguf
from tests.steps_data.calling import run_step
from tests.support.models import tiny_gguf

NAME = "tiny"


def imported_model(root: Path, *, architecture: str = "llama", **changes) -> Path:
    """The model folder of the tiny GGUF file: merges, special tokens and a chat template."""
    source = root / "source"
    source.mkdir(parents=True)
    tiny_gguf(source / "tiny.gguf", architecture=architecture, **changes)
    return run_step(import_gguf, root, inputs={"source": source}, params={"dtype": "fp32"}).out


def artifact_of(model: Path, folder: Path) -> Path:
    """`folder`, made, with the files of `model` and the manifest of an artifact of it."""
    shutil.copytree(model, folder / "model")
    paths = [path for path in (folder / "model").rglob("*") if path.is_file()]
    members = [_member(path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]
    manifest = Manifest(
        name=NAME,
        members=tuple(sorted(members, key=lambda one: order(one.path))),
        weights_id="b3:" + "0" * 64,
        numerics="portable-1",
        licence="Apache-2.0",
        kscore=dict.fromkeys(("k", *TERMS), "1.0000"),
    )
    (folder / "manifest.json").write_bytes(manifest.encode())
    return folder


def source_of(artifact: Path) -> str:
    """The id of the artifact in the folder `artifact`."""
    return "sha256:" + hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest()


def _member(path: str, data: bytes) -> ManifestMember:
    return ManifestMember(
        path=path,
        size=len(data),
        sha256=f"sha256:{hashlib.sha256(data).hexdigest()}",
        b3=f"b3:{blake3(data).hexdigest()}",
        crc32=crc32(data),
    )
