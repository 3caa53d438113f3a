"""``oft``: inputs turned by trained orthogonal blocks (arXiv:2306.07280).

R = (I - Q) (I + Q)^-1 with Q skew-symmetric, begun at 0. PEFT's `OFTConfig` makes the modules; its
Cayley transform, a solver of LAPACK's or five terms of a series, is replaced by own elimination
(ADPT-30), so R is orthogonal to rounding.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from peft import OFTConfig, PeftConfig
from peft.tuners.oft.layer import OFTRotationModule

from kolm_build.core.fields import Fields
from kolm_build.steps._adapter_kinds import OFT, Settings
from kolm_build.steps._bounds import choice, count
from kolm_build.steps._cayley import cayley, skew_of_upper
from kolm_build.steps._pinned_adapters import OFT as PINNED
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps.adapters._change import check_divides
from kolm_build.steps.adapters._peft import PeftChange
from kolm_build.steps.adapters.lora import ALL_LINEAR, modules


class Oft(PeftChange):
    """Orthogonal blocks before a layer.

    Args:
        block_size: Inputs that are turned together; it divides the inputs of every adapted layer.
        target_modules: Names of the linear layers to adapt; empty for every one of them.
        adapter_dtype: How it is stored.
    """

    kind = OFT

    def __init__(
        self, block_size: int, target_modules: tuple[str, ...], adapter_dtype: str
    ) -> None:
        super().__init__(target_modules, adapter_dtype)
        self.block_size = block_size

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapter that `fields` describe."""
        return cls(
            count(fields, "oft_block_size", 32, least=2),
            modules(fields, "target_modules"),
            choice(fields, "adapter_dtype", "fp32", DTYPES),
        )

    def config(self, network: Any) -> PeftConfig:
        """PEFT's settings: the recipe's, and what is pinned."""
        check_divides(network, self.target_modules, self.block_size, where="oft_block_size")
        return OFTConfig(
            oft_block_size=self.block_size,
            target_modules=list(self.target_modules) or ALL_LINEAR,
            **PINNED.fixed,
        )

    def settings(self) -> Settings:
        """The size of a block."""
        return {"oft_block_size": self.block_size}

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`, its Cayley transform replaced."""
        made = super().attach(network)
        for module in made.modules():
            if isinstance(module, OFTRotationModule):
                module._cayley_batch = _cayley  # noqa: SLF001 -- the one seam there is
        return made


def _cayley(
    values: torch.Tensor,
    block_size: int,
    use_cayley_neumann: bool = False,  # noqa: FBT001, FBT002 -- the library's signature
    num_neumann_terms: int = 0,
) -> torch.Tensor:
    """In place of the method of that name in PEFT."""
    del use_cayley_neumann, num_neumann_terms
    return cayley(skew_of_upper(values, block_size))
