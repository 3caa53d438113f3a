"""``rslora``: LoRA scaled by alpha / sqrt(r) (arXiv:2312.03732, theorem 3.2).

PEFT's `LoraConfig(use_rslora=True)` makes it.
"""

from __future__ import annotations

from types import MappingProxyType

from kolm_build.steps.adapters.lora import Lora


class RankStabilisedLora(Lora):
    """LoRA whose scale falls with the root of the rank."""

    flags = MappingProxyType({"use_rslora": True})
