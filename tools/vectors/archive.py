"""Containers: members, and every byte of the file that holds them."""

from zlib import crc32

from kolm_build.core.archive import Member, layout

_FILES: list[dict[str, bytes]] = [
    {},
    {"manifest.json": b"{}"},
    {"manifest.json": b"{}", "model/a": b"w" * 65, "eval/z": b"", "attestations/x": b"sig"},
    {"manifest.json": b"", "attestations/x": b"1", "b": b"2", "B1": b"3", "été/日本": b"4"},
    {"x" * 60: b"", "y" * 61: b"y", "z": b"z" * 200},
]


def _container(files: dict[str, bytes]) -> bytes:
    plan = layout(
        Member(path=path, size=len(data), crc32=crc32(data)) for path, data in files.items()
    )
    parts = [part for piece in plan.placed for part in (piece.lead, files[piece.member.path])]
    return b"".join(parts) + plan.tail


def vectors() -> dict[str, object]:
    return {
        "containers": [
            {
                "files": {path: data.hex() for path, data in files.items()},
                "container": _container(files).hex(),
            }
            for files in _FILES
        ],
        "refused_paths": [
            *("", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a\\b", "C:x", "a\x00b", "a\tb"),
            *(
                "e\u0301",
                "a\u202eb",
                "a\u200bb",
                "a\u2028b",
                "\ue000",
                "a.",
                "a /b",
                "a?",
                "x" * 256,
            ),
            *("/".join("x" * 33), "/".join(["y" * 200] * 3)),
        ],
        "refused_together": [
            ["A.json", "a.json"],
            ["straße", "STRASSE"],
            ["a", "a/b"],
            ["A", "a/b"],
            ["A/x", "a/y"],
        ],
    }
