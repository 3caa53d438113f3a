"""The tensors that a quantised layer has in a model's file."""

from __future__ import annotations

from collections.abc import Mapping

from kolm_build.core.quantisation import Stored, stored_tensors
from kolm_build.core.quantisation_config import LayerGroup


def stored_of(group: LayerGroup, shape: tuple[int, int], scale_dtype: str) -> Mapping[str, Stored]:
    """The tensors of a layer in the file, by the last part of their names (QUANT-20 to 26)."""
    found = dict(stored_tensors(group.grid, group.form, shape, scale_dtype=scale_dtype))
    if group.activations == "static":
        is_pair = group.grid.kind == "nvfp4"
        name = "input_global_scale" if is_pair else "input_scale"
        found[name] = Stored(dtype="F32" if is_pair else scale_dtype, shape=(1,))
    return found
