"""A model whose adapter lies beside its weights: around its layers, or before its rows (GEN-52).

The files are those that training wrote; which tensors there must be, `core/attached.py` says.
"""

from __future__ import annotations

from typing import Any

import torch

from kolm_build.core import strict_json
from kolm_build.core.attached import PREFIX, Mixed, Virtual, read_attached
from kolm_build.core.attached_files import CONFIG, TENSORS, VIRTUAL, check_complete, has_adapter
from kolm_build.core.gated import Gated
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.files import ModelFiles
from kolm_build.runtime.gated import attach_gated
from kolm_build.runtime.mixture import Mixture
from kolm_build.runtime.virtual import begin_with
from kolm_build.runtime.weights import Weights

Matrices = dict[str, dict[str, torch.Tensor]]


def attach(network: Any, files: ModelFiles) -> Any:
    """`network` with the adapter in `files` beside its layers; as it is where there is none.

    Raises:
        InvalidRecordError: A file of the adapter is missing or bad, or is of another model.
    """
    names = files.extents.keys()
    if not has_adapter(names):
        return network
    try:
        check_complete(names)
        said = read_attached(strict_json.loads(files.read(CONFIG)))
        beside = files.weights(TENSORS)
        said.check(_shapes(files.weights()), _dtypes_and_shapes(beside))
        if isinstance(said, Virtual):
            _check_keys(network, said)
            begin_with(network, said, beside.tensors[VIRTUAL])
            return network
        if isinstance(said, Gated):
            attach_gated(network, said, beside.tensors)
            return network
        for path, matrices in _by_layer(beside).items():
            network.set_submodule(path, _mixture(network, path, said, matrices))
    except InvalidRecordError as error:
        raise error.in_file(files.source) from None
    return network


def _mixture(network: Any, path: str, said: Mixed, matrices: dict[str, torch.Tensor]) -> Mixture:
    layer = network.get_submodule(path)
    if type(layer) is not torch.nn.Linear:
        raise InvalidRecordError("an adapter beside what is no plain linear layer", where=path)
    return Mixture(layer, said.routing, is_trained=False, **matrices)


def _check_keys(network: Any, said: Virtual) -> None:
    """Refuse keys and values that are not those of the network's layers."""
    config = network.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wanted = config.num_hidden_layers, heads, heads * size
    if said.kind == PREFIX and (said.layers, said.heads, said.width) != wanted:
        raise InvalidRecordError(
            "the adapter does not fit the model",
            where="num_layers, num_attention_heads, token_dim",
            expected=str(wanted),
            actual=str((said.layers, said.heads, said.width)),
        )


def _by_layer(beside: Weights) -> Matrices:
    """The matrices of each layer, by its path."""
    found: Matrices = {}
    for name, tensor in beside.tensors.items():
        path, _, part = name.rpartition(".")
        found.setdefault(path, {})[part] = tensor
    return found


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {one.name: one.shape for one in weights.header.tensors}


def _dtypes_and_shapes(weights: Weights) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {one.name: (one.dtype, one.shape) for one in weights.header.tensors}
