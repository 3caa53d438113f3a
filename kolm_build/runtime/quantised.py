"""Layers whose weights stay as codes and scales in the mapped file (GEN-40 to GEN-46).

A network is made without weights; its linear layers and embeddings that the configuration names
are replaced by the two modules below; then every tensor of the file is put in its place, where it
lies. No weight is ever there as floating point as a whole: a layer makes what it needs of it when
it is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from kolm_build.core.quantisation_config import LayerGroup, QuantisedLayers
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics import portable, small_floats
from kolm_build.numerics.quantised import unpack, values
from kolm_build.numerics.state import DTYPE_NAMES
from kolm_build.runtime.products import Tensors, product, stock_product
from kolm_build.runtime.stored import stored_of
from kolm_build.runtime.weights import DTYPES


class QuantisedModule(torch.nn.Module):
    """A matrix as codes and scales, its tensors those of the file.

    Args:
        group: How it is stored and computed.
        shape: Rows and columns of the matrix.
        scale_dtype: The dtype of scales that are plain numbers.
    """

    def __init__(self, group: LayerGroup, shape: tuple[int, int], scale_dtype: torch.dtype) -> None:
        super().__init__()
        self.group = group
        self.shape = shape
        self.stored = stored_of(group, shape, DTYPE_NAMES[scale_dtype])
        """Dtype and shape of every tensor of the layer, by the last part of its name."""
        for name, stored in self.stored.items():
            empty = torch.empty(stored.shape, dtype=DTYPES[stored.dtype], device="meta")
            self.register_buffer(name, empty)

    @property
    def elements(self) -> int:
        """The number of weights."""
        return self.shape[0] * self.shape[1]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the file, by the last part of their names."""
        return {name: getattr(self, name) for name in self.stored}

    def codes(self) -> torch.Tensor:
        """The tensor of the codes, as stored."""
        name = "weight" if "weight" in self.stored else "weight_packed"
        found: torch.Tensor = getattr(self, name)
        return found


class QuantisedLinear(QuantisedModule):
    """A linear layer; bit for bit `linear` on what its codes stand for (QUANT-6, NUM-131).

    Where activations are rounded too, a product of integers (NUM-134), or of FP4 numbers with
    scales of their own (GEN-47).

    Args:
        group: How it is stored and computed.
        layer: The layer it stands for, without weights.
        scale_dtype: The dtype of scales that are plain numbers.
    """

    def __init__(self, group: LayerGroup, layer: torch.nn.Linear, scale_dtype: torch.dtype) -> None:
        super().__init__(group, (layer.out_features, layer.in_features), scale_dtype)
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.register_parameter("bias", layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer makes of `x`, [..., in_features]: [..., out_features], in its dtype.

        Without the portable kernels (`native-1`) the weight is there as float32 meanwhile.
        """
        compute = product if portable.is_active() else stock_product
        return compute(x, self.tensors(), self.group, self.bias)


class QuantisedEmbedding(QuantisedModule):
    """An embedding; the rows asked for are the values of their codes, in the network's dtype.

    Args:
        group: How it is stored.
        layer: The layer it stands for, without weights.
        scale_dtype: The dtype of scales that are plain numbers.
        dtype: The dtype of the rows.
    """

    def __init__(
        self,
        group: LayerGroup,
        layer: torch.nn.Embedding,
        scale_dtype: torch.dtype,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(group, (layer.num_embeddings, layer.embedding_dim), scale_dtype)
        self.dtype = dtype
        self.num_embeddings = layer.num_embeddings
        self.embedding_dim = layer.embedding_dim

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows `ids`, [...]: [..., embedding_dim]."""
        return embedded(ids, self.tensors(), self.group, self.embedding_dim, self.dtype)


def embedded(
    ids: torch.Tensor, tensors: Tensors, group: LayerGroup, columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """The rows `ids`, [...], of a quantised embedding: [..., columns], `dtype` (GEN-42)."""
    flat = ids.reshape(-1)
    chosen = {
        name: tensor if name == "weight_global_scale" else tensor.index_select(0, flat)
        for name, tensor in tensors.items()
        if name != "weight_shape"
    }
    matrix = unpack(chosen, group.grid, group.form, (len(flat), columns))
    return values(matrix).to(dtype).reshape(*ids.shape, columns)


def place(
    network: Any,
    layers: QuantisedLayers,
    tensors: Tensors,
    *,
    stored: torch.dtype,
    dtype: torch.dtype,
) -> None:
    """Put quantised layers and the tensors of a file into a network that has no weights.

    Args:
        network: The network, on the meta device but for its constants.
        layers: Which layers are quantised, and how.
        tensors: Every tensor of the model's file, mapped.
        stored: The dtype of the model before it was quantised: that of plain scales.
        dtype: What the network computes in; plain tensors of another are converted.

    Raises:
        InvalidRecordError: A layer does not exist or cannot be quantised, a tensor is missing, or
            there that does not belong, or of another shape or dtype, or a scale is no number.
    """
    _replace(network, layers, stored, dtype)
    wanted = _wanted(network)
    given = _with_tied(network, wanted, tensors)
    _check_names(wanted, given)
    for name, place in wanted.items():
        _check_fits(name, place, given[name])
    _check_numbers(network, given)
    _assign(network, wanted, given, dtype)


def _replace(
    network: Any, layers: QuantisedLayers, stored: torch.dtype, dtype: torch.dtype
) -> None:
    """Put the modules of this file in the place of the layers that `layers` names."""
    for name, group in layers.by_layer().items():
        owner, _, last = name.rpartition(".")
        layer = _layer(network, name)
        if isinstance(layer, torch.nn.Linear):
            made: torch.nn.Module = QuantisedLinear(group, layer, stored)
        elif isinstance(layer, torch.nn.Embedding) and group.grid.symmetric:
            made = QuantisedEmbedding(group, layer, stored, dtype)
        else:
            raise InvalidRecordError(
                "a layer that cannot be quantised so",
                where=f"config.json: quantization_config: {name}",
                expected="a linear layer, or an embedding with a symmetric grid",
                actual=type(layer).__name__,
            )
        setattr(network.get_submodule(owner), last, made)


def _layer(network: Any, name: str) -> torch.nn.Module:
    try:
        found: torch.nn.Module = network.get_submodule(name)
    except AttributeError:
        raise InvalidRecordError(
            "the architecture has no such layer",
            where=f"config.json: quantization_config: {name}",
        ) from None
    return found


def _wanted(network: Any) -> dict[str, torch.Tensor]:
    """Every tensor that the file must hold, on the meta device, by name."""
    return {
        name: tensor
        for name, tensor in network.state_dict(keep_vars=True).items()
        if tensor.device.type == "meta"
    }


def _with_tied(network: Any, wanted: Tensors, tensors: Tensors) -> dict[str, torch.Tensor]:
    """`tensors`, and those that are another one by a second name and so are not in the file."""
    given = dict(tensors)
    for name, source in network.all_tied_weights_keys.items():
        if name in wanted and name not in given and source in given:
            given[name] = given[source]
    return given


def _check_names(wanted: Tensors, given: Tensors) -> None:
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    for trouble, names in (("missing", missing), ("unexpected", unknown)):
        if names:
            raise InvalidRecordError(
                "the weights do not fit the architecture and its quantisation",
                where="model.safetensors",
                actual=f"{trouble}: {', '.join(names)}"[:300],
            )


def _check_fits(name: str, place: torch.Tensor, tensor: torch.Tensor) -> None:
    plain = isinstance(place, torch.nn.Parameter) and tensor.is_floating_point()
    if tensor.shape == place.shape and (plain or tensor.dtype == place.dtype):
        return
    raise InvalidRecordError(
        "a tensor of another shape or dtype than its layer",
        where=f"model.safetensors: {name}",
        expected=_shown(place),
        actual=_shown(tensor),
    )


def _shown(tensor: torch.Tensor) -> str:
    return f"{DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))} {list(tensor.shape)}"


def _check_numbers(network: Any, given: Tensors) -> None:
    """Refuse scales and codes that stand for no number, and a shape beside the codes that lies."""
    for name, module in network.named_modules():
        if not isinstance(module, QuantisedModule):
            continue
        for part in module.stored:
            if not is_sound(part, given[f"{name}.{part}"], module.shape):
                raise InvalidRecordError(
                    "a quantised layer says what cannot be",
                    where=f"model.safetensors: {name}.{part}",
                    expected=f"{list(module.shape)}" if part == "weight_shape" else "numbers",
                )


def is_sound(part: str, tensor: torch.Tensor, shape: tuple[int, int]) -> bool:
    """Whether a quantised layer of `shape` may have `tensor` as its `part` (GEN-45)."""
    if part == "weight_shape":
        return tensor.tolist() == list(shape)
    if tensor.dtype == torch.float8_e4m3fn:
        return bool(small_floats.is_number(tensor.view(torch.uint8)).all())
    if part == "weight_scale" and tensor.dtype == torch.uint8:
        return bool((tensor != 0xFF).all())
    if not tensor.is_floating_point():
        return True
    # One number of a whole layer divides others: it must be above 0.
    return bool(torch.isfinite(tensor).all()) and (tensor.numel() > 1 or bool(tensor > 0))


def _assign(network: Any, wanted: Tensors, given: Tensors, dtype: torch.dtype) -> None:
    """Put each tensor in its place; one that is there by two names is one parameter."""
    made: dict[int, torch.nn.Parameter] = {}
    for name, place in wanted.items():
        owner, _, last = name.rpartition(".")
        tensor = given[name]
        if isinstance(place, torch.nn.Parameter):
            parameter = torch.nn.Parameter(tensor.to(dtype), requires_grad=False)
            tensor = made.setdefault(id(given[name]), parameter)
        setattr(network.get_submodule(owner), last, tensor)


def quantised_modules(network: Any) -> Iterator[QuantisedModule]:
    """The quantised layers of `network`."""
    return (one for one in network.modules() if isinstance(one, QuantisedModule))
