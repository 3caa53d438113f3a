"""A pack's prefix and head, from its values; objects follow as they are."""

from kolm_build.core.digest import Digest
from kolm_build.core.kolmpack import Entry, Head, PackKind, Target, pack_id, prefix
from tools.vectors._notation import record


def _digest(text: str) -> Digest:
    return Digest.of_blob(text.encode())


_WHOLE = Head(
    name="triage",
    targets=(
        Target(
            label="package",
            derivation=_digest("package"),
            output="out",
            content=_digest("artifact"),
        ),
        Target(
            label="train-1.trace",
            derivation=_digest("train-1"),
            output="trace",
            content=None,
        ),
    ),
    project=_digest("project"),
    environments=((_digest("environment"), _digest("environment tree")),),
    classes=("exact-1", "portable-1"),
    objects=(
        Entry(PackKind.DERIVATION, _digest("package"), 300),
        Entry(PackKind.TREE, _digest("project"), 120),
        Entry(PackKind.JOIN, _digest("model.safetensors"), 200),
        Entry(PackKind.BLOB, _digest("a"), 1),
    ),
    needs=(Entry(PackKind.BLOB, _digest("weights"), 1 << 33),),
    left_out=(_digest("left out"),),
)


def vectors() -> dict[str, object]:
    data = _WHOLE.encode()
    head = record(_WHOLE.to_value(), data, id=pack_id(data))
    return {"heads": [head | {"prefix": prefix(data).hex()}]}
