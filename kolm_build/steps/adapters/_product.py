"""Low-rank changes by other products than B A: a rank, and a scale of alpha over it."""

from __future__ import annotations

from typing import Self

from kolm_build.core.fields import Fields
from kolm_build.steps._adapter_kinds import Settings
from kolm_build.steps._bounds import choice, count
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps.adapters._peft import PeftChange
from kolm_build.steps.adapters.lora import modules


class Product(PeftChange):
    """A change of a rank and an alpha.

    Args:
        rank: Its rank.
        alpha: It is scaled by `alpha` over `rank`.
        target_modules: Names of the linear layers to adapt; empty for every one of them.
        adapter_dtype: How it is stored.
    """

    def __init__(
        self, rank: int, alpha: int, target_modules: tuple[str, ...], adapter_dtype: str
    ) -> None:
        super().__init__(target_modules, adapter_dtype)
        self.rank, self.alpha = rank, alpha

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapter that `fields` describe."""
        return cls(
            count(fields, "lora_r", 16),
            count(fields, "lora_alpha", 32),
            modules(fields, "target_modules"),
            choice(fields, "adapter_dtype", "fp32", DTYPES),
        )

    def settings(self) -> Settings:
        """The rank and the alpha."""
        return {"alpha": self.alpha, "r": self.rank}
