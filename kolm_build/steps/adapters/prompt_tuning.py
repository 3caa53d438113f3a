"""``prompt-tuning``: trained embeddings before every row (arXiv:2104.08691, section 2).

PEFT's `PromptTuningConfig` makes it. PEFT leaves the positions of `logits_to_keep` as they are
though the row moved, so they are moved here.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig, PromptTuningConfig

from kolm_build.core.attached import PROMPT as PROMPT_KIND
from kolm_build.steps._pinned_adapters import PROMPT
from kolm_build.steps.adapters._virtual import Virtual


class PromptTuning(Virtual):
    """Embeddings of virtual tokens."""

    peft_type = PROMPT_KIND

    def config(self) -> PeftConfig:
        """PEFT's settings."""
        return PromptTuningConfig(num_virtual_tokens=self.tokens, **PROMPT.fixed)

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`; positions are moved by the virtual tokens."""
        made = super().attach(network)
        made.register_forward_pre_hook(self._moved, with_kwargs=True)
        return made

    def _moved(
        self, _network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.enabled:
            return None
        places = kwargs.get("logits_to_keep")
        if places is None:
            places = torch.arange(kwargs["input_ids"].shape[1])
        return args, {**kwargs, "logits_to_keep": places + self.tokens}
