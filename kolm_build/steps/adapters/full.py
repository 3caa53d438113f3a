"""``full``: every weight of the network is trained, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.runtime.weights import DTYPES as TORCH_DTYPES
from kolm_build.steps._bounds import choice
from kolm_build.steps._files import copy_others
from kolm_build.steps._tensors import weight_of
from kolm_build.steps._trace import diverged
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps._weights import DTYPES, Weight, read_weights, write_weights
from kolm_build.steps.adapters._change import MODEL, Change, float32_alone

WEIGHTS = "model.safetensors"
AS_BASE = "base"


class Full(Change):
    """Every weight.

    Args:
        weights_dtype: What the result is rounded to, once; ``base`` for what the base has.
    """

    output = MODEL

    def __init__(self, weights_dtype: str) -> None:
        self._dtype = weights_dtype
        self._start: dict[str, torch.Tensor] | None = None

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The training that `fields` describe."""
        return cls(choice(fields, "weights_dtype", AS_BASE, (AS_BASE, *DTYPES)))

    def load_dtype(self, training: TrainingParams) -> torch.dtype:
        """Float32: small changes of a weight would be lost in fewer bits.

        Raises:
            InvalidRecordError: The recipe asks for another.
        """
        return float32_alone(training, "every weight is trained in float32")

    def attach(self, network: Any) -> Any:
        """`network` itself."""
        return network.requires_grad_(requires_grad=True)

    def write(self, network: Any, *, base: Path, out: Path) -> None:
        """Write the model, every file of the base but the weights copied."""
        state = network.state_dict()
        weights = [self._trained(one, state[one.name]) for one in read_weights(base / WEIGHTS)]
        write_weights(out / WEIGHTS, weights)
        copy_others(base, out, but=WEIGHTS)

    def remember(self, network: Any) -> None:
        """Copy every weight that is trained."""
        self._start = {
            name: one.detach().clone()
            for name, one in network.named_parameters()
            if one.requires_grad
        }

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network with the weights that it began with."""
        assert self._start is not None, "an objective that needs the reference says so"
        return _swapped(network, self._start)

    def _trained(self, base: Weight, tensor: torch.Tensor) -> Weight:
        if not torch.isfinite(tensor).all():
            raise diverged(base.name, actual="NaN or an infinity")
        dtype = base.dtype if self._dtype == AS_BASE else DTYPES[self._dtype]
        return weight_of(base.name, tensor.detach().to(TORCH_DTYPES[dtype]))


@contextmanager
def _swapped(network: Any, weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """The parameters of `network` are `weights` for a while."""
    swapped = {name: one for name, one in network.named_parameters() if name in weights}
    now = {name: one.data for name, one in swapped.items()}
    for name, one in swapped.items():
        one.data = weights[name]
    try:
        yield
    finally:
        for name, one in swapped.items():
            one.data = now[name]
