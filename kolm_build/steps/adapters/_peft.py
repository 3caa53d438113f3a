"""Adapters other than LoRA that PEFT makes, and that a kind of `_adapter_kinds` merges."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from peft import PeftConfig, get_peft_model

from kolm_build.steps._adapter import config_of
from kolm_build.steps._adapter_kinds import Kind, Settings
from kolm_build.steps.adapters._change import Change, check_layers
from kolm_build.steps.adapters._files import adapter_state, write_adapter


class PeftChange(Change):
    """An adapter that PEFT makes of one of its configurations.

    Args:
        target_modules: Names of the linear layers to adapt; empty for every one of them.
        adapter_dtype: How it is stored; it is trained in float32.
    """

    kind: Kind

    def __init__(self, target_modules: tuple[str, ...], adapter_dtype: str) -> None:
        self.target_modules = target_modules
        self.adapter_dtype = adapter_dtype

    @abstractmethod
    def config(self, network: Any) -> PeftConfig:
        """PEFT's settings."""

    @abstractmethod
    def settings(self) -> Settings:
        """What adapter_config.json says beside what is fixed for the kind."""

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`."""
        check_layers(network, self.target_modules)
        return get_peft_model(network, self.config(network))

    def write(self, network: Any, *, base: Path, out: Path) -> None:
        """Write the adapter's three files (SFT-8, ADPT-1, ADPT-3)."""
        state = adapter_state(network, self.adapter_dtype)
        config = config_of(self.kind, self.settings(), state)
        write_adapter(state, config, base=base, out=out)

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network without its adapters."""
        return network.disable_adapter()
