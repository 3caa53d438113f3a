"""``ia3``: activations scaled by trained vectors (arXiv:2205.05638, section 3.3).

Keys, values and the inner activations of the feed-forward layers are multiplied, element by
element, by vectors that begin with 1. PEFT's `IA3Config` makes it.
"""

from __future__ import annotations

from typing import Any, Self

from peft import IA3Config, PeftConfig

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._adapter_kinds import IA3, Settings
from kolm_build.steps._bounds import choice
from kolm_build.steps._pinned_adapters import IA3 as PINNED
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps.adapters._peft import PeftChange
from kolm_build.steps.adapters.lora import modules

TARGETS = "down_proj,k_proj,v_proj"
FEEDFORWARD = "down_proj"


class Ia3(PeftChange):
    """Trained scales of activations.

    Args:
        target_modules: Names of the linear layers whose activations are scaled.
        feedforward_modules: Those of them whose inputs are scaled, not their outputs.
        adapter_dtype: How it is stored.
    """

    kind = IA3

    def __init__(
        self,
        target_modules: tuple[str, ...],
        feedforward_modules: tuple[str, ...],
        adapter_dtype: str,
    ) -> None:
        super().__init__(target_modules, adapter_dtype)
        self.feedforward_modules = feedforward_modules

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapter that `fields` describe.

        Raises:
            InvalidRecordError: A layer is named as feed-forward that is not a target.
        """
        targets = modules(fields, "target_modules", TARGETS)
        feedforward = modules(fields, "feedforward_modules", FEEDFORWARD)
        if not targets or not feedforward or set(feedforward) - set(targets):
            raise InvalidRecordError(
                "ia3 needs the names of its layers, feed-forward ones among them",
                where="feedforward_modules",
                expected=", ".join(targets) or "names, not all-linear",
                actual=", ".join(feedforward),
            )
        return cls(targets, feedforward, choice(fields, "adapter_dtype", "fp32", DTYPES))

    def config(self, network: Any) -> PeftConfig:
        """PEFT's settings: the recipe's, and what is pinned."""
        del network
        return IA3Config(
            target_modules=list(self.target_modules),
            feedforward_modules=list(self.feedforward_modules),
            **PINNED.fixed,
        )

    def settings(self) -> Settings:
        """The feed-forward layers."""
        return {"feedforward_modules": self.feedforward_modules}
