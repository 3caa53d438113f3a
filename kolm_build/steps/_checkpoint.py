"""Where a training stands after some step: enough to go on to the same bytes (ALG-10 to ALG-12).

A checkpoint is an output of a derivation, and the input of the one that goes on. Nothing in it is
pickled: tensors are a canonical safetensors file, all else is JSON or text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.core.trace import HEAD_FILE, STEPS_FILE, Trace
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.weights import map_weights
from kolm_build.steps._tensors import weight_of
from kolm_build.steps._weights import write_weights

FORMAT = "checkpoint/1"
HEAD, TENSORS, GENERATOR = "checkpoint.json", "state.safetensors", "generator.bin"
PARAMETERS, OBJECTIVE, STATE = "parameters", "objective", "state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of a training.

    Attributes:
        step: The optimiser steps that are done.
        tensors: ``parameters/NAME``, ``state/PART/NAME`` of the optimiser, ``objective/NAME``.
        generator: The state of torch's default generator.
        trace: The trace so far.
        figures: The rows of the metrics so far; a number as the text that reads back as it.
    """

    step: int
    tensors: Mapping[str, torch.Tensor]
    generator: bytes
    trace: Trace
    figures: tuple[tuple[str, ...], ...]

    def write(self, out: Path) -> None:
        """Write it to the folder `out`.

        Raises:
            InvalidRecordError: A tensor holds what is not a finite number.
        """
        weights = [weight_of(name, tensor) for name, tensor in self.tensors.items()]
        write_weights(out / TENSORS, weights)
        (out / GENERATOR).write_bytes(self.generator)
        for name, data in self.trace.files().items():
            (out / name).write_bytes(data)
        head = {"figures": [list(row) for row in self.figures], "format": FORMAT, "step": self.step}
        (out / HEAD).write_bytes(strict_json.dumps(head))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The checkpoint in `folder`.

        Raises:
            InvalidRecordError: It is not one.
        """
        try:
            fields = Fields(strict_json.loads((folder / HEAD).read_bytes()))
            if fields.text("format") != FORMAT:
                raise InvalidRecordError("not a checkpoint", where="format", expected=FORMAT)
            step, figures = fields.integer("step"), fields.records("figures", _row)
            fields.done()
        except InvalidRecordError as error:
            raise error.in_file(HEAD) from None
        return cls(
            step=step,
            tensors=map_weights(folder / TENSORS).tensors,
            generator=(folder / GENERATOR).read_bytes(),
            trace=Trace.of_files(
                (folder / HEAD_FILE).read_bytes(), (folder / STEPS_FILE).read_bytes()
            ),
            figures=figures,
        )

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors below `prefix`, by the rest of their names."""
        start = f"{prefix}/"
        return {
            name.removeprefix(start): one
            for name, one in self.tensors.items()
            if name.startswith(start)
        }

    def restore_parameters(self, network: Any) -> None:
        """Give `network` the parameters that were trained.

        Raises:
            InvalidRecordError: It trains others.
        """
        saved = self.below(PARAMETERS)
        trained = {name: one for name, one in network.named_parameters() if one.requires_grad}
        if {name: one.shape for name, one in trained.items()} != {
            name: one.shape for name, one in saved.items()
        }:
            raise InvalidRecordError("a checkpoint of another training", file=TENSORS)
        with torch.no_grad():
            for name, one in trained.items():
                one.copy_(saved[name])

    def restore_optimiser(self, optimiser: torch.optim.Optimizer, network: Any) -> None:
        """Give `optimiser` its state."""
        named = dict(network.named_parameters())
        for place, tensor in self.below(STATE).items():
            part, _, name = place.partition("/")
            optimiser.state[named[name]][part] = tensor.clone()

    def restore_generator(self) -> None:
        """Give torch's default generator its state."""
        torch.set_rng_state(torch.frombuffer(bytearray(self.generator), dtype=torch.uint8))

    def write_state(self, folder: Path, args: TrainingArguments) -> Path:
        """Write to `folder` what tells the library's trainer with `args` how far it is."""
        folder.mkdir(exist_ok=True)
        state = TrainerState(global_step=self.step)
        state.train_batch_size = args.per_device_train_batch_size
        state.compute_steps(args, args.max_steps)
        state.save_to_json(str(folder / "trainer_state.json"))
        return folder


def state_of(
    network: Any, optimiser: torch.optim.Optimizer, objective: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint.

    Raises:
        InvalidRecordError: The optimiser keeps something that is no tensor of numbers.
    """
    trained = {name: one for name, one in network.named_parameters() if one.requires_grad}
    names = {one: name for name, one in trained.items()}
    found = {f"{PARAMETERS}/{name}": one.detach() for name, one in trained.items()}
    found |= {f"{OBJECTIVE}/{name}": one.detach() for name, one in objective.items()}
    for parameter, state in optimiser.state.items():
        for part, value in state.items():
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                raise InvalidRecordError(
                    "this optimiser's state cannot be put aside",
                    where="checkpoint_steps",
                    actual=f"{part}: {type(value).__name__}",
                    advice="Leave checkpoint_steps out, or use adamw.",
                )
            found[f"{STATE}/{part}/{names[parameter]}"] = value.detach()
    return found


def _row(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidRecordError("not a row", expected="an array of text")
    return tuple(map(str, value))


class StopAfter(TrainerCallback):
    """Ends a training after some step.

    Args:
        step: The step, from 1.
    """

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, _args: Any, state: Any, control: Any, **_others: Any) -> None:
        """End it there."""
        if state.global_step == self._step:
            control.should_training_stop = True
