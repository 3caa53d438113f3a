"""How a value is written in a vector file, so that JSON loses nothing of it."""

from collections.abc import Mapping


def noted(value: object) -> object:
    """`value` with bytes as ``{"bytes": hex}``, integers as ``{"int": text}``, maps wrapped."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Mapping):
        return {"map": {name: noted(item) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        return [noted(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return {"int": str(value)}
    return value


def record(value: object, encoded: bytes, **digests: object) -> dict[str, object]:
    """One hashed record: its value, its canonical bytes and its digests."""
    texts = {name: str(digest) for name, digest in digests.items()}
    return {"value": noted(value), "cbor": encoded.hex(), **texts}
