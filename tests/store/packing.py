"""Small deliveries to put into packs, and packs written by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kolm_build.core.derivation import OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.kolmpack import Entry, Head, PackKind, prefix
from kolm_build.core.realisation import Realisation
from kolm_build.errors import PackError
from kolm_build.store.local import LocalStore
from kolm_build.store.packer import Have, Packing, Wanted
from kolm_build.store.packfile import PackFile
from tests.store.builders import content_input, derivation, make_folder, safetensors

BIG = bytes(range(256)) * 8192  # 2 MiB: waits in a file of its own while it is imported
TENSORS = {"a": b"\1" * 8192, "b": b"\2" * 9000}


def deliver(store: LocalStore, place: Path) -> Wanted:
    """A project of two nodes, built: what a pack of it holds."""
    code = store.ingest(make_folder(place / "code", {"step.py": b"run()", "lib/x.py": b"y = 1"}))
    rows = store.ingest(make_folder(place / "rows", {"rows.jsonl": b"{}\n", "big.bin": BIG}))
    model = store.ingest(
        make_folder(place / "model", {"model.safetensors": safetensors(TENSORS), "empty": b""})
    )
    result = store.ingest(make_folder(place / "result", {"answer.txt": b"42", "again": BIG}))
    project = store.ingest(make_folder(place / "project", {"kolm.toml": b"name = 'x'\n"}))
    first = replace(derivation("first", {"rows": content_input(rows)}), code=code)
    above = OutputInput(derivation=first.digest, output="out")
    second = replace(derivation("second", {"model": above}), code=code)
    log = store.put_log(b"it went well\n")
    for made, content in ((first, model), (second, result)):
        resolved = made.resolve({above: model})
        drv = store.put_derivation(made)
        fact = Realisation(resolved=resolved.resolved_digest, output="out", content=content)
        store.add_realisation(fact, derivation=drv, circumstances={"log": str(log)})
    return Wanted(
        name="x",
        outputs={"second": OutputInput(derivation=second.digest, output="out")},
        project=project,
        environments={},
    )


def write_pack(
    store: LocalStore, wanted: Wanted, path: Path, *, have: Have | None = None
) -> Packing:
    packing = store.plan_pack(wanted, have=have)
    with path.open("wb") as file:
        store.write_pack(packing, file.write)
    return packing


def objects_of(path: Path) -> dict[Entry, bytes]:
    """Every object of a pack with its bytes."""
    with PackFile.open(path) as file:
        return {entry: file.read(entry) for entry in file.head.objects}


def head_of(path: Path) -> Head:
    with PackFile.open(path) as file:
        return file.head


def rewrite(path: Path, dest: Path, change: Callable[[dict[str, object]], None]) -> Path:
    """The pack in `path` with another head, well formed and with its own right digest."""
    from kolm_build.core import cbor

    objects = objects_of(path)
    value = head_of(path).to_value()
    change(value)
    data = cbor.encode(value)
    dest.write_bytes(prefix(data) + data + b"".join(objects.values()))
    return dest


def forge(path: Path, dest: Path, objects: dict[Entry, bytes], **other: object) -> Path:
    """The pack in `path` with these objects instead, a head that lists them, and a right digest."""
    ordered = dict(sorted(objects.items()))
    head = replace(head_of(path), objects=tuple(ordered), **other)  # type: ignore[arg-type]
    data = head.encode()
    dest.write_bytes(prefix(data) + data + b"".join(ordered.values()))
    return dest


def entry(kind: PackKind, digest: Digest, data: bytes) -> Entry:
    return Entry(kind, digest, len(data))


def snapshot(store: LocalStore) -> dict[str, bytes]:
    """Every file of a store but the index, and what the index says."""
    files = {
        str(path.relative_to(store.root)): path.read_bytes()
        for path in sorted(store.root.rglob("*"))
        if path.is_file() and not path.name.startswith("db.sqlite") and path.name != "lock"
    }
    rows = store._index.select("select * from object order by kind, digest")
    claims = store._index.select("select * from claim order by digest")
    roots = store._index.select("select * from root order by name")
    return files | {"index": repr((rows, claims, roots)).encode()}


def take(store, path, **options):
    with PackFile.open(path) as file:
        return store.take_pack(file, **options)


def refused(store, path, kind=PackError):
    """What `path` is refused with; the store is as it was, and so is a check without a store."""
    before = snapshot(store)
    with pytest.raises(kind) as caught:
        take(store, path)
    assert snapshot(store) == before
    mine = {store._session.name} if store._session else set()
    assert {path.name for path in (store.root / "tmp").iterdir()} == mine
    return caught.value
