"""``vera``: two random matrices for all layers, trained scales (arXiv:2310.11454, equation 2).

W + diag(b) B diag(d) A; A and B are frozen, shared, drawn from a generator of their own seed, and
part of the file. PEFT's `VeraConfig` makes it.
"""

from __future__ import annotations

from typing import Any, Self

from peft import PeftConfig, VeraConfig

from kolm_build.core.fields import Fields
from kolm_build.steps._adapter_kinds import VERA, Settings
from kolm_build.steps._bounds import choice, count, decimal
from kolm_build.steps._pinned_adapters import VERA as PINNED
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps.adapters._peft import PeftChange
from kolm_build.steps.adapters.lora import ALL_LINEAR, modules

SEED = 0
"""Of the generator of A and B."""


class Vera(PeftChange):
    """Trained scales of a random low-rank change.

    Args:
        rank: Rows of A and columns of B.
        d_initial: What d begins with; b begins with 0.
        dropout: Share of an adapter's inputs that is dropped in training.
        target_modules: Names of the linear layers to adapt; empty for every one of them.
        adapter_dtype: How it is stored.
    """

    kind = VERA

    def __init__(
        self,
        rank: int,
        *,
        d_initial: float,
        dropout: float,
        target_modules: tuple[str, ...],
        adapter_dtype: str,
    ) -> None:
        super().__init__(target_modules, adapter_dtype)
        self.rank, self.d_initial, self.dropout = rank, d_initial, dropout

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapter that `fields` describe."""
        return cls(
            count(fields, "vera_r", 256),
            d_initial=decimal(fields, "vera_d_initial", "0.1", least=0.0, most=100.0),
            dropout=decimal(fields, "vera_dropout", "0", least=0.0, most=0.99),
            target_modules=modules(fields, "target_modules"),
            adapter_dtype=choice(fields, "adapter_dtype", "fp32", DTYPES),
        )

    def config(self, network: Any) -> PeftConfig:
        """PEFT's settings: the recipe's, and what is pinned."""
        del network
        return VeraConfig(
            r=self.rank,
            d_initial=self.d_initial,
            vera_dropout=self.dropout,
            projection_prng_key=SEED,
            target_modules=list(self.target_modules) or ALL_LINEAR,
            **PINNED.fixed,
        )

    def settings(self) -> Settings:
        """The rank and the seed."""
        return {"projection_prng_key": SEED, "r": self.rank}
