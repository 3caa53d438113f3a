"""``ln-tuning``: the normalisations' gains and biases are trained (arXiv:2312.11420)."""

from __future__ import annotations

import torch

from kolm_build.steps.adapters._partial import Partial


class LnTuning(Partial):
    """Every normalisation."""

    what = "normalisations"

    def trains(self, name: str, parameter: torch.Tensor, layers: int) -> bool:
        """Whether it belongs to a normalisation, final one included."""
        del layers
        return parameter.ndim == 1 and "norm" in name.rpartition(".")[0].rpartition(".")[2]
