"""Digests of blobs and of records of each kind."""

from kolm_build.core.digest import Blob, Digest, RecordKind

_BLOBS = [(b"", 1), (b"a", 1), (b"kolm\n", 1), (b"\0", 1023), (bytes(range(256)), 4), (b"\0", 1025)]
_BLOBS += [(b"x", 102400)]


def _blob(data: bytes, times: int) -> dict[str, object]:
    blob = Blob.of(data * times)
    return {
        "hex": data.hex(),
        "times": times,
        "b3": str(blob.b3),
        "sha256": str(blob.sha256),
        "size": blob.size_bytes,
    }


def vectors() -> dict[str, object]:
    return {
        "blobs": [_blob(data, times) for data, times in _BLOBS],
        "records": [
            {
                "kind": kind.name.lower(),
                "context": kind.value,
                "hex": "a0",
                "b3": str(Digest.of_record(b"\xa0", kind)),
            }
            for kind in RecordKind
        ],
    }
