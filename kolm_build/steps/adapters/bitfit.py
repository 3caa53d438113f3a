"""``bitfit``: the biases are trained, nothing else (arXiv:2106.10199)."""

from __future__ import annotations

import torch

from kolm_build.steps.adapters._partial import Partial


class BitFit(Partial):
    """Every bias."""

    what = "biases"

    def trains(self, name: str, parameter: torch.Tensor, layers: int) -> bool:
        """Whether it is a bias."""
        del parameter, layers
        return name.endswith(".bias")
