"""``hra``: inputs reflected by a few trained mirrors (arXiv:2405.17484).

W H_1 ... H_r, H_i = I - 2 u_i u_i' with u_i of length 1; of an even number of mirrors each has its
like beside it at the start, so the product begins as I. PEFT's `HRAConfig` makes it.
"""

from __future__ import annotations

from typing import Any, Self

from peft import HRAConfig, PeftConfig

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._adapter_kinds import HRA, Settings
from kolm_build.steps._bounds import choice, count
from kolm_build.steps._pinned_adapters import HRA as PINNED
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps.adapters._peft import PeftChange
from kolm_build.steps.adapters.lora import ALL_LINEAR, modules


class Hra(PeftChange):
    """Householder reflections before a layer.

    Args:
        mirrors: How many, an even number.
        target_modules: Names of the linear layers to adapt; empty for every one of them.
        adapter_dtype: How it is stored.
    """

    kind = HRA

    def __init__(self, mirrors: int, target_modules: tuple[str, ...], adapter_dtype: str) -> None:
        super().__init__(target_modules, adapter_dtype)
        self.mirrors = mirrors

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapter that `fields` describe.

        Raises:
            InvalidRecordError: The number of mirrors is odd.
        """
        mirrors = count(fields, "hra_r", 8, least=2)
        if mirrors % 2:
            raise InvalidRecordError(
                "an odd number of reflections", where="hra_r", expected="an even one"
            )
        return cls(
            mirrors,
            modules(fields, "target_modules"),
            choice(fields, "adapter_dtype", "fp32", DTYPES),
        )

    def config(self, network: Any) -> PeftConfig:
        """PEFT's settings: the recipe's, and what is pinned."""
        del network
        return HRAConfig(
            r=self.mirrors,
            target_modules=list(self.target_modules) or ALL_LINEAR,
            **PINNED.fixed,
        )

    def settings(self) -> Settings:
        """The number of mirrors."""
        return {"r": self.mirrors}
