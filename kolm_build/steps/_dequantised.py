"""A quantised model's tensors as the float32 numbers that it computes with (QUANT-6, EXPORT-7)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch

from kolm_build.core.quantisation_config import LayerGroup, QuantisedLayers
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.quantised import unpack, values
from kolm_build.numerics.state import payload
from kolm_build.steps._tensors import tensor_of
from kolm_build.steps._weights import Weight

_PARTS = frozenset(
    {
        "weight",
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_global_scale",
    }
)
"""What stands in the place of a weight; scales of what a layer reads are not of it."""


def dequantised(stored: Sequence[Weight], layers: QuantisedLayers) -> tuple[Weight, ...]:
    """The tensors of a model under their plain names, its quantised ones in float32.

    Args:
        stored: The tensors of its file.
        layers: What is quantised.

    Raises:
        InvalidRecordError: A tensor of a layer is missing or does not fit the others.
    """
    return tuple(_plain(stored, layers.by_layer()))


def _plain(stored: Sequence[Weight], groups: Mapping[str, LayerGroup]) -> Iterator[Weight]:
    parts: dict[str, dict[str, Weight]] = defaultdict(dict)
    for one in stored:
        layer, _, part = one.name.rpartition(".")
        if layer not in groups or part == "bias":
            yield one
        elif part in _PARTS:
            parts[layer][part] = one
    for layer, group in groups.items():
        if parts[layer].keys() != {"weight_scale"}:  # what a tied head has of its own (QUANT-33)
            yield _matrix(layer, group, parts[layer])


def _matrix(layer: str, group: LayerGroup, parts: Mapping[str, Weight]) -> Weight:
    try:
        shape = _shape(parts)
    except (KeyError, ValueError):
        raise InvalidRecordError(
            "the tensors of a quantised layer are not those of its format",
            where=layer,
            expected=group.form,
            actual=", ".join(sorted(parts)) or "none",
        ) from None
    return Weight(
        name=f"{layer}.weight",
        dtype="F32",
        shape=shape,
        read=partial(_values, layer, group, parts, shape),
    )


def _shape(parts: Mapping[str, Weight]) -> tuple[int, int]:
    if "weight" in parts:
        rows, columns = parts["weight"].shape
    elif "weight_shape" in parts:
        rows, columns = tensor_of(parts["weight_shape"]).tolist()
    else:
        rows, half = parts["weight_packed"].shape
        columns = 2 * half
    return rows, columns


def _values(
    layer: str, group: LayerGroup, parts: Mapping[str, Weight], shape: tuple[int, int]
) -> memoryview:
    tensors = {part: tensor_of(one) for part, one in parts.items()}
    try:
        found = values(unpack(tensors, group.grid, group.form, shape))
    except InvalidRecordError as error:
        raise error.under(layer) from None
    except (KeyError, RuntimeError) as error:
        raise InvalidRecordError(
            "the tensors of a quantised layer do not fit each other",
            where=layer,
            expected=f"{group.form} of {shape}",
            actual=str(error)[:120],
        ) from None
    assert found.dtype is torch.float32, "a dequantised weight is float32"
    return payload(found)
