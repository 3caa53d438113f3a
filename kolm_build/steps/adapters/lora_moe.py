"""``lora-moe``: low-rank adapters beside each layer that all speak, weighted by a router.

The weights are the softmax of arXiv:2312.09979, equation 4; the losses are those of `moe_lora`.
"""

from __future__ import annotations

from typing import Self

from kolm_build.core.attached import SOFT
from kolm_build.core.fields import Fields
from kolm_build.steps.adapters.moe_lora import MoeLora, MoeLoraParams


class LoraMoe(MoeLora):
    """A mixture in which every expert speaks."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The mixture that `fields` describe."""
        return cls(MoeLoraParams.take(fields, SOFT))
