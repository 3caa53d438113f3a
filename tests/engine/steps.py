"""Steps for the engine's tests: a code tree of one file, standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from kolm_build.core.derivation import ContentInput, Derivation, Input
from kolm_build.core.digest import Digest
from kolm_build.core.numerics import Numerics

# Reads the request without the project's code: a second reader of the protocol.
START = """
import json, os, struct, sys

def decode(data, at=0):
    major, low = data[at] >> 5, data[at] & 31
    at += 1
    if major == 7:
        return {20: False, 21: True, 22: None}[low], at
    size = low
    if low >= 24:
        width = 1 << (low - 24)
        size, at = int.from_bytes(data[at:at + width], "big"), at + width
    if major == 0:
        return size, at
    if major == 1:
        return -1 - size, at
    if major in (2, 3):
        raw = data[at:at + size]
        return (raw if major == 2 else raw.decode()), at + size
    if major == 4:
        items = []
        for _ in range(size):
            item, at = decode(data, at)
            items.append(item)
        return items, at
    items = {}
    for _ in range(size):
        key, at = decode(data, at)
        items[key], at = decode(data, at)
    return items, at

request, _ = decode(open(sys.argv[1], "rb").read())
inputs, outputs, params = request["inputs"], request["outputs"], request["params"]
out = outputs.get("out")

def say(**event):
    os.write(request["events_fd"], json.dumps(event).encode() + b"\\n")

def put(name, text, output="out"):
    with open(outputs[output] + "/" + name, "w") as file:
        file.write(text)

def get(role, name="text"):
    with open(inputs[role] + "/" + name) as file:
        return file.read()
"""


@dataclass(frozen=True)
class Shape:
    network: bool = False
    environment: bool = False


SHAPES = {"test": Shape(), "net": Shape(network=True)}


def code(store, tmp_path: Path, body: str) -> Digest:
    """The digest of a code tree whose step is `body`."""
    return folder(store, tmp_path, {"step.py": START + dedent(body)})


def folder(store, tmp_path: Path, files: dict[str, str]) -> Digest:
    """The digest of a tree of `files`."""
    place = tmp_path / f"folder-{Digest.of_blob(repr(files).encode()).hex[:16]}"
    place.mkdir(exist_ok=True)
    for name, text in files.items():
        (place / name).write_text(text)
    return store.ingest(place)


def derivation(
    code: Digest,
    *,
    name: str = "node",
    step: str = "test",
    inputs: dict[str, Input | Digest] | None = None,
    outputs: dict[str, Digest | None] | None = None,
    params: dict[str, str | int] | None = None,
    threads: int = 1,
) -> Derivation:
    pairs = {
        role: ContentInput(content=value) if isinstance(value, Digest) else value
        for role, value in (inputs or {}).items()
    }
    return Derivation(
        name=name,
        step=step,
        code=code,
        environment=None,
        params=tuple(sorted((params or {}).items())),
        inputs=tuple(sorted(pairs.items(), key=lambda pair: pair[0])),
        outputs=tuple(sorted((outputs or {"out": None}).items())),
        numerics=Numerics(cls="exact-1", threads=threads),
    )
