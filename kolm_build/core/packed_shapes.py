"""The shapes of weights that are stored as codes (spec/quantization.md). Standard library only."""

from __future__ import annotations

from collections.abc import Mapping

from kolm_build.core.quantisation import WORD_BITS
from kolm_build.core.quantisation_config import LayerGroup, from_config
from kolm_build.core.weight_names import HEAD, Shape
from kolm_build.errors import InvalidRecordError

_PACKED = "weight_packed"


def unpacked(stored: Mapping[str, Shape], config: object) -> Mapping[str, Shape]:
    """The shapes of the weights that the tensors of these shapes mean.

    Args:
        stored: The shape of every tensor of the file, by name.
        config: The value of ``quantization_config``.

    Raises:
        InvalidRecordError: It is of a form that is not known, or a layer that is said to be
            quantised has no codes.
    """
    found = dict(stored)
    for layer, group in from_config(config).by_layer().items():
        parts = [name for name in found if _belongs(name, layer)]
        codes = _codes(layer, group, {name: found[name] for name in parts})
        for name in parts:
            del found[name]
        if codes is not None:
            found[f"{layer}.weight"] = codes
        elif f"{layer}.weight" != HEAD:
            raise InvalidRecordError("a quantised layer has no weight", where=layer)
    return found


def _belongs(name: str, layer: str) -> bool:
    """Whether a tensor is part of how the weight of `layer` is stored, or what it reads."""
    owner, _, part = name.rpartition(".")
    return owner == layer and part != "bias"


def _codes(layer: str, group: LayerGroup, stored: Mapping[str, Shape]) -> Shape | None:
    """The shape of the weight that is stored as codes; None for the head that is tied to them."""
    packed = stored.get(f"{layer}.{_PACKED}")
    if packed is None:
        return stored.get(f"{layer}.weight")
    rows, columns = packed
    per = WORD_BITS // group.grid.bits if group.form == "pack-quantized" else 2
    return rows, columns * per
