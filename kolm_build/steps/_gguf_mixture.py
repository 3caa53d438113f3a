"""Which kind of block each tensor of a GGUF file gets: llama.cpp's choice (EXPORT-12, EXPORT-13).

Read off `llama_tensor_get_type_impl` and `tensor_type_fallback` there, for the architectures that
are exported here and without an importance matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType as Kind

from kolm_build.steps._architectures import EMBEDDING, HEAD
from kolm_build.steps._gguf_blocks import block_values


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A way to store a model.

    Attributes:
        kind: What a matrix is stored as.
        file_type: llama.cpp's number of it, ``general.file_type``.
        head: What the output matrix is stored as.
        better: What half of the value and down matrices are stored as.
    """

    kind: Kind
    file_type: int
    head: Kind
    better: Kind


MIXTURES: Mapping[str, Mixture] = {
    "f16": Mixture(kind=Kind.F16, file_type=1, head=Kind.F16, better=Kind.F16),
    "q8_0": Mixture(kind=Kind.Q8_0, file_type=7, head=Kind.Q8_0, better=Kind.Q8_0),
    "q4_0": Mixture(kind=Kind.Q4_0, file_type=2, head=Kind.Q6_K, better=Kind.Q4_0),
    "q4_k_m": Mixture(kind=Kind.Q4_K, file_type=15, head=Kind.Q6_K, better=Kind.Q6_K),
}

_FALLBACK: Mapping[Kind, Kind] = {Kind.Q4_K: Kind.Q5_0, Kind.Q6_K: Kind.Q8_0}
"""Super-blocks of 256 values to blocks of 32, where the columns are no multiple of 256."""

_BETTER = (".attn_v.weight", ".ffn_down.weight")


def kind_of(
    mixture: Mixture, name: str, shape: tuple[int, ...], *, layers: int, is_tied: bool
) -> Kind:
    """What the GGUF tensor `name` is stored as.

    Args:
        mixture: How the model is stored.
        name: The tensor's GGUF name.
        shape: Its sizes, slowest first.
        layers: Number of layers of the model.
        is_tied: Whether the output uses the embedding.
    """
    if len(shape) < 2:
        return Kind.F32
    kind = mixture.kind
    if name == (EMBEDDING if is_tied else HEAD):
        kind = Kind.Q8_0 if shape[-1] % block_values(kind) else mixture.head
    elif name.endswith(_BETTER) and _gets_more_bits(int(name.split(".")[1]), layers):
        kind = mixture.better
    return _fitting(kind, shape[-1])


def _gets_more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(kind: Kind, columns: int) -> Kind:
    """`kind`, or what takes its place where its blocks do not divide the columns."""
    if columns % block_values(kind):
        kind = _FALLBACK.get(kind, Kind.F16)
    return kind if columns % block_values(kind) == 0 else Kind.F16
