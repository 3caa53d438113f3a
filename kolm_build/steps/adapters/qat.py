"""``qat``: every weight, trained while the linear layers compute with rounded ones.

Quantisation-aware training (arXiv:2305.17888, section 2.2: weights only). With a distillation as
the objective and the model before rounding as the teacher it is quantisation-aware distillation
(arXiv:2601.20088). The result is a whole model, not yet rounded: what `quantise` makes of it,
round to nearest in the same scheme, groups and layers, is what was trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

from transformers import TrainerCallback

from kolm_build.core.fields import Fields
from kolm_build.core.quantisation import SCHEMES, Scheme
from kolm_build.runtime.weights import COMPUTE_DTYPES
from kolm_build.steps._bounds import choice
from kolm_build.steps.adapters._change import adapted_layers, check_layers
from kolm_build.steps.adapters._rounded import Refresher, grid_of, put_rounded, rounding_anew
from kolm_build.steps.adapters.full import Full
from kolm_build.steps.adapters.lora import modules
from kolm_build.steps.quantisation.params import take_group

WEIGHT_ONLY = ("fp8", "mxfp4", "nvfp4a16", "w4a16", "w4a16-asym", "w8a16")
"""The schemes that round weights and nothing else."""


class Qat(Full):
    """Every weight, behind rounded ones.

    Args:
        weights_dtype: What the result is rounded to; scales are stored in it too.
        scheme: What `quantise` will be asked.
        group: Columns that share a scale; 0 for the rule.
        target_modules: Names of the layers that compute with rounded weights; empty for all.
    """

    def __init__(
        self, weights_dtype: str, scheme: Scheme, group: int, target_modules: tuple[str, ...]
    ) -> None:
        super().__init__(weights_dtype)
        self.dtype = COMPUTE_DTYPES[weights_dtype]
        self.scheme = scheme
        self.group = group
        self.target_modules = target_modules

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The training that `fields` describe.

        Raises:
            InvalidRecordError: A word is unknown, or a group has no meaning in the scheme.
        """
        dtype = choice(fields, "weights_dtype", "fp32", tuple(COMPUTE_DTYPES))
        scheme = SCHEMES[choice(fields, "rounding", "w4a16", WEIGHT_ONLY)]
        group = take_group(fields, scheme, "rounding_group")
        return cls(dtype, scheme, group, modules(fields, "target_modules"))

    def attach(self, network: Any) -> Any:
        """`network` with rounded layers in place of those that are named."""
        check_layers(network, self.target_modules)
        layers = adapted_layers(network, self.target_modules)
        put_rounded(network, layers, grid_of(self.scheme, self.group), self.dtype)
        return super().attach(network)

    def watchers(self, network: Any) -> Sequence[TrainerCallback]:
        """What has the layers round once in a step."""
        return (Refresher(network),)

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network with the weights that it began with, rounded."""
        return _before(network, super().reference(network))


@contextmanager
def _before(network: Any, weights: AbstractContextManager[Any]) -> Iterator[None]:
    with rounding_anew(network), weights:
        yield
