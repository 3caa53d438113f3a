"""Which matrices of a model are rounded, and to what (spec/quantization.md, QUANT-40 on)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from kolm_build.core.quantisation import (
    INT4,
    INT8,
    Activations,
    Format,
    Grid,
    format_of,
    group_for,
)
from kolm_build.core.quantisation_config import QuantisedLayers, grouped
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._weights import Weight
from kolm_build.steps.quantisation.params import QuantiseParams

Role = Literal["embedding", "head", "linear"]

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers beside each other that engines run as one matrix; their NVFP4 scale is shared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A matrix that may be rounded.

    Attributes:
        name: Its layer's name; the matrix is ``<name>.weight``.
        role: What it is in the network.
        shape: Rows and columns.
        is_tied: Whether it is the head, and the embedding's matrix.
    """

    name: str
    role: Role
    shape: tuple[int, int]
    is_tied: bool = False

    @property
    def tensor(self) -> str:
        """The name of its weight."""
        return f"{self.name}.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A layer that is rounded.

    Attributes:
        layer: Which.
        grid: What to.
        form: How it is stored.
        activations: What happens to what it reads.
    """

    layer: Layer
    grid: Grid
    form: Format
    activations: Activations = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The layers of a model, divided.

    Attributes:
        targets: Those that are rounded, by name, sorted.
        kept: The names of those that are not, sorted.
    """

    targets: Mapping[str, Target]
    kept: tuple[str, ...]

    def described(self) -> QuantisedLayers:
        """What config.json says of them."""
        rows = ((name, one.grid, one.form, one.activations) for name, one in self.targets.items())
        return grouped(rows, kept=self.kept)

    def grids(self) -> Mapping[str, Grid]:
        """The grid of each linear layer that is rounded."""
        return {name: one.grid for name, one in self.targets.items() if one.layer.role == "linear"}

    def tied_to(self, layer: Layer) -> tuple[str, ...]:
        """The rounded heads whose matrix is that of the embedding `layer`."""
        if layer.role != "embedding":
            return ()
        return tuple(name for name, one in self.targets.items() if one.layer.is_tied)

    def fused(self, name: str) -> tuple[str, ...]:
        """The targets that share a global scale with the layer `name`, itself among them."""
        parent, _, last = name.rpartition(".")
        for family in FUSED:
            if last in family:
                names = (f"{parent}.{member}" for member in family)
                return tuple(one for one in names if one in self.targets)
        return (name,)


def layers_of(config: Mapping[str, object], weights: Sequence[Weight]) -> tuple[Layer, ...]:
    """The linear layers, the embedding and the head of a model, sorted by name.

    Args:
        config: What config.json says.
        weights: The model's tensors.

    Raises:
        InvalidRecordError: transformers has no such causal language model, or no matrix of the
            file is one of its linear layers.
    """
    network = _network(config)
    shapes = {weight.name: weight.shape for weight in weights}
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    found = []
    for name, module in network.named_modules():
        tensor = f"{name}.weight"
        if module is head and tensor not in shapes and config.get("tie_word_embeddings"):
            shape = tuple(head.weight.shape)
            found.append(Layer(name=name, role="head", shape=shape, is_tied=True))
        elif tensor in shapes and (module is embedding or isinstance(module, torch.nn.Linear)):
            role: Role = (
                "embedding" if module is embedding else "head" if module is head else "linear"
            )
            _check_shape(tensor, shapes[tensor], tuple(module.weight.shape))
            found.append(Layer(name=name, role=role, shape=tuple(module.weight.shape)))
    if not any(layer.role == "linear" for layer in found):
        raise InvalidRecordError(
            "the model has no linear layer that can be rounded",
            file="config.json",
            where="architectures",
            actual=repr(config.get("architectures"))[:80],
        )
    return tuple(sorted(found, key=lambda layer: layer.name))


def choose(layers: Sequence[Layer], params: QuantiseParams) -> Chosen:
    """What becomes of each of `layers`.

    Raises:
        InvalidRecordError: A pattern of `keep` matches no layer, no layer is left, or a layer's
            columns cannot be divided.
    """
    linear = [layer for layer in layers if layer.role == "linear"]
    _check_patterns(linear, params.keep)
    held = {one.name for one in linear if any(fnmatchcase(one.name, p) for p in params.keep)}
    if len(held) == len(linear):
        raise InvalidRecordError("every layer is kept", where="keep", expected="a layer to round")
    pairs = ((layer, _target(layer, params)) for layer in layers if layer.name not in held)
    targets = {layer.name: target for layer, target in pairs if target is not None}
    kept = tuple(layer.name for layer in layers if layer.name not in targets)
    return Chosen(targets=targets, kept=kept)


def _target(layer: Layer, params: QuantiseParams) -> Target | None:
    try:
        if layer.role == "linear":
            scheme = params.scheme
            grid = scheme.grid(layer.shape[1], group=params.group)
            form = format_of(grid, scheme.activations)
            return Target(layer=layer, grid=grid, form=form, activations=scheme.activations)
        return _EMBEDDINGS[params.embeddings](layer)
    except InvalidRecordError as error:
        raise error.under(layer.tensor) from None


def _int8(layer: Layer) -> Target:
    """Not packed, so that a tied head finds the embedding's matrix by its name (QUANT-33)."""
    return Target(layer=layer, grid=INT8, form="int-quantized")


def _int4(layer: Layer) -> Target:
    """The head; transformers reads no embedding that is packed, so that one has 8 bits."""
    if layer.role == "embedding":
        return _int8(layer)
    if layer.is_tied:
        raise InvalidRecordError(
            "the head is the embedding's matrix, which cannot be stored in 4 bits",
            expected="embeddings = int8 or keep",
            actual="int4",
        )
    grid = replace(INT4, group=group_for(layer.shape[1]))
    return Target(layer=layer, grid=grid, form="pack-quantized")


_EMBEDDINGS: Mapping[str, Callable[[Layer], Target | None]] = {
    "int4": _int4,
    "int8": _int8,
    "keep": lambda _layer: None,
}


def _check_patterns(layers: Sequence[Layer], patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            raise InvalidRecordError(
                "a pattern that matches no layer",
                where="keep",
                expected=", ".join(layer.name for layer in layers[:4]) + ", …",
                actual=repr(pattern),
            )


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise InvalidRecordError(
            "the weights do not fit the architecture",
            file="model.safetensors",
            where=name,
            expected=str(wanted),
            actual=str(found),
        )


def _network(config: Mapping[str, object]) -> Any:
    """The network that `config` describes, without memory for its weights.

    Raises:
        InvalidRecordError: transformers has none.
    """
    kind = config.get("model_type")
    known = CONFIG_MAPPING[kind] if isinstance(kind, str) and kind in CONFIG_MAPPING else None
    if known is None or known not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InvalidRecordError(
            "not a causal language model that this program knows",
            file="config.json",
            where="model_type",
            actual=repr(kind),
        )
    with torch.device("meta"):
        return MODEL_FOR_CAUSAL_LM_MAPPING[known](known.from_dict(dict(config)))
