"""Which tensor of two safetensors files differs first."""

from __future__ import annotations

from blake3 import blake3

from kolm_build.core import safetensors
from kolm_build.core.compare import Difference, TensorFacts, tensor_differences
from kolm_build.core.digest import Digest
from kolm_build.core.tree import File, Node
from kolm_build.engine.protocol import Store
from kolm_build.errors import KolmError

MAX_BYTES = 4 << 30


def first_tensor(store: Store, difference: Difference) -> str | None:
    """The first tensor, by name, in which two versions of a weights file differ.

    Returns:
        None where the files are no weights, are too large to compare here, or differ elsewhere.
    """
    if not difference.path.endswith(".safetensors"):
        return None
    try:
        before = _facts(store, difference.before)
        after = _facts(store, difference.after)
    except KolmError:
        return None  # one of them is no valid file: the path alone must do
    if before is None or after is None:
        return None
    found = tensor_differences(before, after)
    return found[0].name if found else None


def _facts(store: Store, node: Node | None) -> dict[str, TensorFacts] | None:
    """What each tensor of a file is, by name; None for what is no file or too large."""
    if not isinstance(node, File) or node.size_bytes > MAX_BYTES:
        return None
    data = memoryview(store.read_blob(node.b3))
    prefix = safetensors.PREFIX_BYTES
    length = safetensors.header_length(bytes(data[:prefix]), len(data))
    header = safetensors.parse_header(bytes(data[prefix : prefix + length]), len(data))
    payload = data[header.data_start :]
    return {
        one.name: (one.dtype, one.shape, Digest(blake3(payload[one.begin : one.end]).digest()))
        for one in header.tensors
    }
