"""``prefix-tuning``: trained keys and values before every layer's (arXiv:2101.00190, equation 3).

PEFT's `PrefixTuningConfig` makes it, without the paper's reparametrisation by an MLP.
"""

from __future__ import annotations

from peft import PeftConfig, PrefixTuningConfig

from kolm_build.core.attached import PREFIX as PREFIX_KIND
from kolm_build.steps._pinned_adapters import PREFIX
from kolm_build.steps.adapters._virtual import Virtual


class PrefixTuning(Virtual):
    """Keys and values of virtual tokens, in every layer."""

    peft_type = PREFIX_KIND

    def config(self) -> PeftConfig:
        """PEFT's settings."""
        return PrefixTuningConfig(num_virtual_tokens=self.tokens, **PREFIX.fixed)
