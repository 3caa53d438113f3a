"""``lokr``: a Kronecker product with a low-rank matrix (arXiv:2309.14859).

W + s C x (A B), the sides of C and A B near the roots of those of W.

PEFT's `LoKrConfig` makes it.
"""

from __future__ import annotations

from typing import Any

from peft import LoKrConfig, PeftConfig

from kolm_build.steps._adapter_kinds import LOKR
from kolm_build.steps._pinned_adapters import LOKR as PINNED
from kolm_build.steps.adapters._product import Product
from kolm_build.steps.adapters.lora import ALL_LINEAR


class LoKr(Product):
    """Kronecker's product of a small matrix and a low-rank one."""

    kind = LOKR

    def config(self, network: Any) -> PeftConfig:
        """PEFT's settings: the recipe's, and what is pinned."""
        del network
        return LoKrConfig(
            r=self.rank,
            alpha=self.alpha,
            target_modules=list(self.target_modules) or ALL_LINEAR,
            **PINNED.fixed,
        )
