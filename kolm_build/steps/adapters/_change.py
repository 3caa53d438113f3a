"""What every adapter can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._training_params import TrainingParams

ADAPTER = "adapter"
MODEL = "model"


class Change(ABC):
    """The part of a network that is trained, and how it is kept."""

    output: str = ADAPTER
    """Which output of the step holds the result: ``adapter``, or ``model`` for a whole one."""

    caches: bool = True
    """Whether what a network with it has read can be kept as keys and values."""

    def load_dtype(self, training: TrainingParams) -> torch.dtype:
        """What the base is loaded in."""
        return torch.bfloat16 if training.compute_dtype == "bf16" else torch.float32

    def receive(self, request: StepRequest) -> None:
        """Read what it needs of the step's inputs, before `attach`; by itself that is nothing."""
        del request

    def look(self, base: Path) -> None:
        """Look at the files of the base, in the folder `base`, before it is loaded."""
        del base

    @abstractmethod
    def attach(self, network: Any) -> Any:
        """`network` with what is trained attached; torch's default generator is seeded."""

    @abstractmethod
    def write(self, network: Any, *, base: Path, out: Path) -> None:
        """Write what was trained to the folder `out`; the base model is in the folder `base`."""

    plain: bool = True
    """Whether what is trained needs no more than its gradients; if not, `penalty` and `watchers`
    take part in every optimiser step."""

    def penalty(self, network: Any) -> torch.Tensor | None:
        """What is added to the loss of every optimiser step, shape (); None for nothing."""
        del network
        return None

    def row_penalty(self, network: Any) -> torch.Tensor | None:
        """What is added to a row's loss, over the step's rows, after it was read, or None."""
        del network
        return None

    def watchers(self, network: Any) -> Sequence[TrainerCallback]:
        """Callbacks that go with it, told of every step before the trace is."""
        del network
        return ()

    def remember(self, network: Any) -> None:
        """Keep what `reference` needs of `network`, just attached; by itself that is nothing."""
        del network

    @abstractmethod
    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network as it was before it was trained, as long as the context lasts.

        `remember` was called before.
        """


def float32_alone(training: TrainingParams, why: str) -> torch.dtype:
    """Float32, for what can be trained in nothing else.

    Args:
        training: What the recipe asks for.
        why: Why, as the error says it.

    Raises:
        InvalidRecordError: The recipe asks for another.
    """
    if training.compute_dtype != "fp32":
        raise InvalidRecordError(
            why, where="compute_dtype", expected="fp32", actual=training.compute_dtype
        )
    return torch.float32


def check_layers(network: torch.nn.Module, names: Sequence[str]) -> None:
    """Refuse a name that no linear layer has; PEFT would pass over it in silence."""
    linear = {path.rpartition(".")[2] for path, _ in adapted_layers(network, ())}
    for name in names:
        if name not in linear:
            raise InvalidRecordError(
                "the model has no such linear layer",
                where="target_modules",
                expected=", ".join(sorted(linear)),
                actual=repr(name),
            )


def check_divides(network: torch.nn.Module, names: Sequence[str], size: int, *, where: str) -> None:
    """Refuse an adapted layer whose inputs are no multiple of `size`; PEFT would change `size`."""
    for path, layer in adapted_layers(network, names):
        if layer.in_features % size:
            raise InvalidRecordError(
                f"the inputs of {path} cannot be divided into blocks",
                where=where,
                expected=f"a divisor of {layer.in_features}",
                actual=str(size),
            )


def adapted_layers(
    network: torch.nn.Module, names: Sequence[str]
) -> list[tuple[str, torch.nn.Linear]]:
    """The linear layers whose last name is among `names`, by their paths; all of them for none.

    The output head is never among them.
    """
    head = network.get_output_embeddings()
    return [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and (not names or path.rpartition(".")[2] in names)
    ]
