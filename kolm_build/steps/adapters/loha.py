"""``loha``: an elementwise product of two low-rank matrices (arXiv:2108.06098).

W + s (A1 B1) * (A2 B2): of rank up to r squared.

PEFT's `LoHaConfig` makes it.
"""

from __future__ import annotations

from typing import Any

from peft import LoHaConfig, PeftConfig

from kolm_build.steps._adapter_kinds import LOHA
from kolm_build.steps._pinned_adapters import LOHA as PINNED
from kolm_build.steps.adapters._product import Product
from kolm_build.steps.adapters.lora import ALL_LINEAR


class LoHa(Product):
    """Hadamard's product of two low-rank changes."""

    kind = LOHA

    def config(self, network: Any) -> PeftConfig:
        """PEFT's settings: the recipe's, and what is pinned."""
        del network
        return LoHaConfig(
            r=self.rank,
            alpha=self.alpha,
            target_modules=list(self.target_modules) or ALL_LINEAR,
            **PINNED.fixed,
        )
