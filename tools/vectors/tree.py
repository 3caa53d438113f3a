"""Trees."""

from kolm_build.core.digest import Blob
from kolm_build.core.tree import File, Folder, Link, Tree
from tools.vectors._notation import record


def _file(data: bytes, *, executable: bool = False) -> File:
    blob = Blob.of(data)
    return File(b3=blob.b3, sha256=blob.sha256, size_bytes=blob.size_bytes, executable=executable)


def vectors() -> dict[str, object]:
    empty = Tree.of([])
    one = Tree.of([("config.json", _file(b"{}"))])
    many = Tree.of(
        [
            ("run.sh", _file(b"#!/bin/sh\n", executable=True)),
            ("model", Folder(tree=one.digest)),
            ("latest", Link(target="model/config.json")),
            ("été.txt", _file("été".encode())),
            ("Z", _file(b"upper case sorts first")),
            ("empty", Folder(tree=empty.digest)),
        ]
    )
    return {
        "trees": [
            record(tree.to_value(), tree.encode(), digest=tree.digest)
            for tree in (empty, one, many)
        ]
    }
