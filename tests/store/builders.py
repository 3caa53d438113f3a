"""Small things to put into a store."""

import json
from pathlib import Path

from kolm_build.core.derivation import ContentInput, Derivation, Input
from kolm_build.core.digest import Digest
from kolm_build.core.numerics import Numerics
from kolm_build.core.realisation import Realisation
from kolm_build.store.local import LocalStore

EXACT = Numerics(cls="exact-1")


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def read_folder(path: Path) -> dict[str, bytes | str]:
    """Every file's bytes and every link's target, by relative path."""
    found: dict[str, bytes | str] = {}
    for entry in sorted(path.rglob("*")):
        name = str(entry.relative_to(path))
        if entry.is_symlink():
            found[name] = str(entry.readlink())
        elif entry.is_file():
            found[name] = entry.read_bytes()
    return found


def safetensors(tensors: dict[str, bytes], *, pad: int = 0) -> bytes:
    """A file with U8 tensors, made here and not by the code under test."""
    table, at = {}, 0
    for name, data in tensors.items():
        table[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    header = json.dumps(table).encode() + b" " * pad
    return len(header).to_bytes(8, "little") + header + b"".join(tensors.values())


def derivation(name: str = "one", inputs: dict[str, Input] | None = None) -> Derivation:
    return Derivation(
        name=name,
        step="script",
        code=Digest.of_blob(b"code"),
        environment=None,
        params=(("entry", name),),
        inputs=tuple(sorted((inputs or {}).items())),
        outputs=(("out", None),),
        numerics=EXACT,
    )


def realise(
    store: LocalStore, made: Derivation, content: Digest, **circumstances: object
) -> Digest:
    """Record that `made` gave `content`; its resolved digest."""
    drv = store.put_derivation(made)
    fact = Realisation(resolved=made.resolved_digest, output="out", content=content)
    store.add_realisation(fact, derivation=drv, circumstances=circumstances)
    return made.resolved_digest


def content_input(digest: Digest) -> Input:
    return ContentInput(content=digest)


def blob_path(store: LocalStore, b3: Digest) -> Path:
    whole = store.root / "cas" / b3.hex[:2] / b3.hex
    return whole if whole.exists() else whole.with_name(whole.name + ".join")


def damage(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)
