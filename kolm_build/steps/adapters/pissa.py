"""``pissa``: the greatest singular values are trained (arXiv:2404.02948, equations 2 to 4).

W = U S V': A0 = sqrt(S_r) V_r' and B0 = U_r sqrt(S_r), divided by the root of LoRA's scale; what is
left of W is frozen. PEFT's module, own singular values (ADPT-22): those of LAPACK are not portable.
"""

from __future__ import annotations

import math

import torch

from kolm_build.steps._factorisation import leading_svd, samples
from kolm_build.steps.adapters._initialised import Initialised, Pair


class Pissa(Initialised):
    """LoRA that begins with the principal part of every matrix."""

    def factors(self, weight: torch.Tensor, scale: float) -> Pair:
        """The leading singular vectors, each with the root of its value."""
        rank = self.params.lora_r
        noise = torch.randn(weight.shape[1], samples(weight, rank))
        left, values, right = leading_svd(weight, rank, noise)
        roots = torch.sqrt(values) / math.sqrt(scale)
        return roots[:, None] * right, left * roots
