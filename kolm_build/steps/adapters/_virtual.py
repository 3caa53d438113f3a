"""Adapters that stand before a row instead of in the weights: they cannot be merged (ADPT-50)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from peft import PeftConfig, get_peft_model

from kolm_build.core.attached import Virtual as VirtualTokens
from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import choice, count
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps.adapters._change import Change
from kolm_build.steps.adapters._files import adapter_state, write_adapter


class Virtual(Change):
    """Trained vectors before every row.

    Args:
        tokens: How many.
        adapter_dtype: How they are stored; they are trained in float32.
    """

    peft_type: str
    caches = False  # PEFT puts the vectors before every pass, and a cache would hold them twice

    def __init__(self, tokens: int, adapter_dtype: str) -> None:
        self.tokens = tokens
        self.adapter_dtype = adapter_dtype
        self.enabled = True

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapter that `fields` describe."""
        return cls(
            count(fields, "virtual_tokens", 20),
            choice(fields, "adapter_dtype", "fp32", DTYPES),
        )

    @abstractmethod
    def config(self) -> PeftConfig:
        """PEFT's settings; it fills in what it finds in the model's configuration."""

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`."""
        return get_peft_model(network, self.config())

    def write(self, network: Any, *, base: Path, out: Path) -> None:
        """Write the adapter's three files (SFT-8, ADPT-1)."""
        config = network.peft_config["default"]
        assert config.num_transformer_submodules == 1, "a causal language model has one"
        said = VirtualTokens(
            kind=self.peft_type,
            tokens=self.tokens,
            layers=config.num_layers,
            heads=config.num_attention_heads,
            width=config.token_dim,
        )
        state = adapter_state(network, self.adapter_dtype)
        write_adapter(state, said.to_value(), base=base, out=out)

    @contextmanager
    def reference(self, network: Any) -> Iterator[Any]:
        """The network without its vectors."""
        self.enabled = False
        try:
            with network.disable_adapter():
                yield
        finally:
            self.enabled = True
