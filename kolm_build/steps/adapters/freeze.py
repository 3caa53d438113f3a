"""``freeze``: the last layers are trained, the first are frozen (arXiv:1911.03090)."""

from __future__ import annotations

import re
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._bounds import choice, count
from kolm_build.steps._weights import DTYPES
from kolm_build.steps.adapters._partial import Partial
from kolm_build.steps.adapters.full import AS_BASE

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


class Freeze(Partial):
    """The last layers; embeddings, final normalisation and output head stay.

    Args:
        weights_dtype: What the result is rounded to.
        last: How many layers.
    """

    what = "layers"

    def __init__(self, weights_dtype: str, last: int) -> None:
        super().__init__(weights_dtype)
        self.last = last

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The training that `fields` describe."""
        dtype = choice(fields, "weights_dtype", AS_BASE, (AS_BASE, *DTYPES))
        return cls(dtype, count(fields, "trained_layers", 1))

    def trains(self, name: str, parameter: torch.Tensor, layers: int) -> bool:
        """Whether it belongs to one of the last layers.

        Raises:
            InvalidRecordError: The model has fewer.
        """
        del parameter
        if self.last > layers:
            raise InvalidRecordError(
                "the model has fewer layers",
                where="trained_layers",
                expected=f"at most {layers}",
                actual=str(self.last),
            )
        found = _LAYER.search(name)
        return found is not None and int(found[1]) >= layers - self.last
