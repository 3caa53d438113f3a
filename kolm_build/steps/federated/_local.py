"""What a site's training has that plain fine-tuning has not: a start, and terms in the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict

from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.weights import map_weights
from kolm_build.steps.adapters.lora import Lora, LoraParams
from kolm_build.steps.sft import Answers

Tensors = Mapping[str, torch.Tensor]


class GlobalLora(Lora):
    """Adapters that begin as those of the round.

    Args:
        params: Rank, scale and layers.
        start: The round's adapter, in PEFT's names.
        freeze_a: Whether only B is trained (FFA-LoRA, arXiv:2403.12313).
    """

    def __init__(self, params: LoraParams, *, start: Tensors, freeze_a: bool) -> None:
        super().__init__(params)
        self.start = start
        self._freeze_a = freeze_a

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`, with the round's numbers in it."""
        attached = super().attach(network)
        wanted = {name: tuple(one.shape) for name, one in self.start.items()}
        found = {plain(name): tuple(one.shape) for name, one in _trained(attached).items()}
        if found != wanted:
            name = min(
                one for one in found.keys() | wanted.keys() if found.get(one) != wanted.get(one)
            )
            raise InvalidRecordError(
                "the adapter of the round does not fit the model",
                where=name,
                expected=str(found.get(name, "no such tensor")),
                actual=str(wanted.get(name, "no such tensor")),
            )
        set_peft_model_state_dict(attached, dict(self.start))
        for name, one in attached.named_parameters():
            if self._freeze_a and ".lora_A." in name:
                one.requires_grad_(requires_grad=False)
        return attached


def plain(name: str) -> str:
    """A parameter's name as an adapter's file has it: PEFT puts the adapter's name inside."""
    return name.replace(".default.weight", ".weight")


def _trained(network: Any) -> dict[str, torch.Tensor]:
    return {name: one for name, one in network.named_parameters() if one.requires_grad}


def flat(network: Any, tensors: Tensors) -> torch.Tensor:
    """What `tensors` hold for the trained parameters, flat, in their order; zero where nothing."""
    made = [
        tensors.get(plain(name), torch.zeros_like(one)).float().reshape(-1)
        for name, one in _trained(network).items()
    ]
    return torch.cat(made)


def read_tensors(path: Path) -> Tensors:
    """The tensors in the file `path`; none where there is no file."""
    return dict(map_weights(path).tensors) if path.exists() else {}


class LocalAnswers(Answers):
    """Fine-tuning on answers, with mu (w - w0) + shift added to the gradient.

    With mu alone this is FedProx (arXiv:1812.06127, equation 2); with shift = c - c_i SCAFFOLD
    (arXiv:1910.06378, equation 3); with mu and shift = -g_i FedDyn (arXiv:2111.04263, equation 2).

    Args:
        mu: Strength of the pull to the round's adapter.
        start: The round's adapter.
        shift: What is added whatever the weights are.
    """

    def __init__(self, *, mu: float, start: Tensors, shift: Tensors) -> None:
        self.mu = mu
        self._start = start
        self._shift = shift
        self._flat: tuple[torch.Tensor, torch.Tensor] | None = None
        self.steps = 0

    def correct(self, network: Any, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient with the terms added, each only where there is one."""
        self.steps += 1
        if not self.mu and not self._shift:
            return gradient
        if self._flat is None:
            self._flat = flat(network, self._start), flat(network, self._shift)
        start, shift = self._flat
        if self.mu:
            now = torch.cat([one.detach().reshape(-1) for one in _trained(network).values()])
            gradient = gradient + self.mu * (now - start)
        return gradient + shift if self._shift else gradient
