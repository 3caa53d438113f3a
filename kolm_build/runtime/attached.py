"""A model whose adapter lies beside its weights: the adapter's modules around the layers (GEN-52).

The files are those that training wrote; which tensors there must be, `core/attached.py` says.
"""

from __future__ import annotations

from typing import Any

import torch

from kolm_build.core import strict_json
from kolm_build.core.attached import CONFIG, TENSORS, Attached, check_complete, has_adapter
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.files import ModelFiles
from kolm_build.runtime.mixture import Mixture
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
        said = Attached.from_value(strict_json.loads(files.read(CONFIG)))
        beside = files.weights(TENSORS)
        said.check(_shapes(files.weights()), _dtypes_and_shapes(beside))
        for path, matrices in _by_layer(beside).items():
            network.set_submodule(path, _mixture(network, path, said, matrices))
    except InvalidRecordError as error:
        raise error.in_file(files.source) from None
    return network


def _mixture(network: Any, path: str, said: Attached, matrices: dict[str, torch.Tensor]) -> Mixture:
    layer = network.get_submodule(path)
    if type(layer) is not torch.nn.Linear:
        raise InvalidRecordError("an adapter beside what is no plain linear layer", where=path)
    made = Mixture(layer, said.routing, **{part: one.float() for part, one in matrices.items()})
    made.requires_grad_(requires_grad=False)
    return made


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
