"""What has read prompts, as whoever says their answers sees it: numbers in NumPy's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]


class Answering(Protocol):
    """What has read some prompts and can read on."""

    @property
    def logits(self) -> Floats:
        """What it expects after the prompts, float32, rows by vocabulary."""

    def read(self, chosen: Sequence[int]) -> Floats:
        """What it expects after one token more of each row, `chosen`; float32."""

    def chances(self, logits: Floats, temperature: float) -> Floats:
        """The probabilities of one row's `logits` over `temperature`, in its arithmetic."""
