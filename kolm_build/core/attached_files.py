"""Files and tensors of an adapter that lies beside a model's weights, by name (ALG-20).

What they must say is `core.attached`; whether there are any is asked of every model.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from kolm_build.errors import InvalidRecordError

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
BASE = "base.json"
FILES = (CONFIG, TENSORS, BASE)
"""What a model folder has beside a model's own files."""

VIRTUAL = "prompt_embeddings"
"""The one tensor of virtual tokens, a row each."""

GATE = "gate"
PARTS = ("down", GATE, "gate_bias", "up")
"""What a mixture that reads twice has beside a layer, as it is named in the file."""

TRUNK = "gating."
"""How the names of the gating network's own layers begin."""


def has_adapter(names: AbstractSet[str]) -> bool:
    """Whether a model folder with files of these `names` has an adapter, or a part of one."""
    return not names.isdisjoint(FILES)


def check_complete(names: AbstractSet[str]) -> None:
    """Refuse a model folder that has some of an adapter's files and not all.

    Raises:
        InvalidRecordError: One is missing.
    """
    missing = sorted(set(FILES) - names)
    if missing:
        raise InvalidRecordError("a part of the adapter is missing", where=", ".join(missing))


def reads_twice(names: Iterable[str]) -> bool:
    """Whether a model with tensors of these `names` reads a token without its adapters first."""
    return any(name.rpartition(".")[2] == GATE for name in names)


def is_beside(name: str) -> bool:
    """Whether the tensor `name` of a model that reads twice is of its adapters or gates."""
    return name.rpartition(".")[2] in PARTS or name.startswith(TRUNK)
