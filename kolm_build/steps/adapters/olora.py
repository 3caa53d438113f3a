"""``olora``: LoRA begins with the first columns of Q and rows of R (arXiv:2406.01775).

W = Q R: B0 = Q_r, A0 = R_r; what is left of W is frozen. PEFT's module, own QR (ADPT-21).
"""

from __future__ import annotations

import torch

from kolm_build.steps._factorisation import leading_qr
from kolm_build.steps.adapters._initialised import Initialised, Pair


class Olora(Initialised):
    """LoRA that begins with orthonormal columns."""

    def factors(self, weight: torch.Tensor, scale: float) -> Pair:
        """R's first rows and Q's first columns; LoRA's scale multiplies them, as in PEFT."""
        del scale
        left, right = leading_qr(weight, self.params.lora_r)
        return right, left
