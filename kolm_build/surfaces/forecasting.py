"""Whether what a recipe makes will fit a device, told before it is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from kolm_build.core.cost import Config, Tensors
from kolm_build.core.derivation import OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.forecast import Forecast, forecast, with_adapter
from kolm_build.core.instantiation.instance import FULL_SCORE, Instance
from kolm_build.core.recipe import Recipe
from kolm_build.core.safetensors import (
    PREFIX_BYTES,
    TensorEntry,
    header_length,
    parse_header,
)
from kolm_build.core.sections import ATTACH, Pipeline
from kolm_build.core.targets import Target, parse_target
from kolm_build.core.tree import File
from kolm_build.core.weight_names import EMBEDDING
from kolm_build.errors import InvalidRecordError, UsageError
from kolm_build.store.local import LocalStore

MODEL = "model"
_CONFIG, _WEIGHTS = "config.json", ".safetensors"

Contents = Callable[[OutputInput], Digest | None]
"""The content of an output, where it was built."""


def target_of(text: str, recipe: Recipe) -> Target:
    """The device that `text` names, for what `recipe` makes.

    Raises:
        UsageError: There is no such device, or the recipe makes no model.
    """
    return parse_target(text, _pipeline(recipe).score.device)


def forecast_of(
    recipe: Recipe, instance: Instance, store: LocalStore, contents: Contents, target: Target
) -> Forecast | None:
    """What the model of `recipe` will need on `target`; None while no model of its shape is here.

    The shape is that of the last stage's model, or of any that it starts from: training keeps it,
    and what an adapter will add beside the weights follows from its stage.

    Args:
        recipe: What makes the model.
        instance: Its derivations.
        store: Where built models are.
        contents: What was built.
        target: The device.

    Raises:
        InvalidRecordError: The model is not of a kind that can be counted, or no group of the
            scheme divides a layer.
    """
    pipeline = _pipeline(recipe)
    for output in models(instance):
        content = contents(output)
        if content is not None and store.has_tree(content):
            basis = instance.derivations[output.derivation].name
            config, tensors = _read(content, store)
            if EMBEDDING not in tensors:
                raise InvalidRecordError(
                    "not a model that can be counted before it is built",
                    where=basis,
                    expected=f"the Llama family, with {EMBEDDING}",
                )
            attached = pipeline.attached
            if attached is not None and basis != f"{ATTACH}-{len(pipeline.train)}":
                mixed = [pipeline.stage(node).params for _, node in attached.adapters]
                tensors = with_adapter(config, tensors, attached.params, mixed)
            return forecast(config, tensors, quantise=pipeline.quantise, target=target, basis=basis)
    return None


def models(instance: Instance) -> Iterator[OutputInput]:
    """The model before it is quantised, then each that it was trained from, the base last."""
    scored = instance.nodes.get(FULL_SCORE, instance.nodes["score"])
    found = dict(scored.inputs).get(MODEL)
    while isinstance(found, OutputInput):
        yield found
        found = dict(instance.derivations[found.derivation].inputs).get(MODEL)


def _pipeline(recipe: Recipe) -> Pipeline:
    if recipe.pipeline is None:
        raise UsageError("the recipe makes no model", where="--target")
    return recipe.pipeline


def _read(content: Digest, store: LocalStore) -> tuple[Config, Tensors]:
    """The configuration and the tensors' headers of a model's tree."""
    files = {name: node for name, node in store.tree(content).entries if isinstance(node, File)}
    if _CONFIG not in files:
        raise InvalidRecordError("the model has no configuration", where=_CONFIG)
    config: Mapping[str, object] = json.loads(store.read_blob(files[_CONFIG].b3))
    found = {
        tensor.name: tensor
        for name, file in files.items()
        if name.endswith(_WEIGHTS)
        for tensor in _tensors(file, store)
    }
    return config, found


def _tensors(file: File, store: LocalStore) -> tuple[TensorEntry, ...]:
    """The tensors of a weights file: its first bytes alone are read."""
    head, end = b"", PREFIX_BYTES
    for piece in store.giver().stream(file.b3):
        head += piece
        if len(head) >= PREFIX_BYTES:
            end = PREFIX_BYTES + header_length(head[:PREFIX_BYTES], file.size_bytes)
        if len(head) >= end:
            break
    return parse_header(head[PREFIX_BYTES:end], file.size_bytes).tensors
