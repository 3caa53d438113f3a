"""Objectives, and the one trainer that minimises any of them (spec/algorithms.md).

A row of the data is a logical shard: it is computed alone, without padding, with a generator of
its own, and the shards' gradients are added by the fixed tree (spec/numerics.md, NUM-110 on). So
the rows of an optimiser step may stand in micro-batches of any size. What needs all rows of a
step, such as samples, rewards or a batch's statistics, is made before, without gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from datasets import Dataset

from kolm_build.numerics.gradients import TreeSum, set_gradients, take_gradients
from kolm_build.runtime.loading import Model
from kolm_build.steps._trainer import ROWS, AnswerTrainer, seeded, shard_seed
from kolm_build.steps.adapters._change import Change

if TYPE_CHECKING:
    from kolm_build.steps._given import Given

E = TypeVar("E")
C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one row adds to an optimiser step.

    Attributes:
        loss: Its part of the step's loss, shape (); the parts of all rows add up to it.
        figures: Its values of the objective's figures, each shape (); the step's figure is their
            mean over its rows.
    """

    loss: torch.Tensor
    figures: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The optimiser step that runs.

    Attributes:
        number: Its number, from 0.
        seeds: A seed for each of its rows, from which all that is random about the row follows.
        repeat: How often these rows came before, where an objective repeats them.
    """

    number: int
    seeds: Sequence[int]
    repeat: int


class Objective(ABC, Generic[E, C]):
    """What a stage minimises over its rows: E is a row made ready, C what a step knows of it."""

    figures: tuple[str, ...] = ()
    """Names of what a share says beside its loss."""

    notes: tuple[str, ...] = ()
    """Names of what `noted` says: columns of text in the table of figures."""

    repeats: int = 1
    """How many optimiser steps in a row are made with the same rows."""

    needs_reference: bool = False
    """Whether it asks for the change's `reference` once the training runs; what it looks at in
    `start` is the reference by itself."""

    @abstractmethod
    def examples(self, given: Given) -> Sequence[E]:
        """The rows, read and made ready; what is wrong with one is refused with its number."""

    @abstractmethod
    def columns(self, examples: Sequence[E]) -> Mapping[str, Sequence[Sequence[int]]]:
        """The rows' token ids, for the trace: columns of one list for each row."""

    def attach(self, network: Any) -> None:
        """Give the network, its adapters attached, what the objective trains beside it."""

    def write(self, network: Any, out: Path) -> None:
        """Write what was trained beside the network to the folder of the result, `out`."""

    def state(self) -> Mapping[str, torch.Tensor]:
        """What it knows of the steps before, float32, which a checkpoint must keep."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take what `state` gave; `start` was called before."""
        assert not state, "an objective with a state takes it back"

    def noted(self) -> Mapping[str, str]:
        """What is to be noted of the optimiser step that runs, under the names in `notes`."""
        return {}

    def start(self, network: Any, examples: Sequence[E]) -> None:
        """Look at the network before anything is trained; the policy is the reference still."""

    asks_network: bool = True
    """Whether `prepare` looks at the network, which is then not in training mode."""

    @abstractmethod
    def prepare(self, network: Any, examples: Sequence[E], moment: Moment) -> Sequence[C]:
        """What must be known of the rows of one optimiser step; there are no gradients here."""

    @abstractmethod
    def share(self, network: Any, example: E, context: C) -> Share:
        """What one row adds to the step's loss."""

    def order(self) -> Sequence[int] | None:
        """The rows' indices in the order of every epoch, after `start`; None for one by lot."""
        return None

    def trainer(self, numerics_class: str) -> type[AnswerTrainer]:
        """The trainer to use."""
        del numerics_class
        return ObjectiveTrainer

    def dataset(self, examples: Sequence[E]) -> Dataset:
        """What the trainer draws from: the rows' numbers."""
        return Dataset.from_dict({ROWS: list(range(1, len(examples) + 1))})

    def collator(self, model: Model) -> Any:
        """Makes micro-batches of what is drawn."""
        del model
        return _numbers

    def correct(self, network: Any, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient to use in place of `gradient`, flat, in the order of the parameters."""
        del network
        return gradient


class ObjectiveTrainer(AnswerTrainer):
    """TRL's loop around an objective; the dataset holds the rows' numbers alone."""

    objective: Objective[Any, Any]
    change: Change
    examples: Sequence[Any]
    step_figures: dict[str, float]
    """The objective's figures of the last optimiser step."""
    step_notes: Mapping[str, str]
    """What the objective noted of it."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """TRL's own; for an objective with an order or that uses rows again, one of it."""
        order = self.objective.order()
        if order is not None:
            return ListedRows(order)
        if self.objective.repeats == 1:
            return super()._get_train_sampler(train_dataset)
        return RepeatedRows(
            rows=len(self.examples),
            size=self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps,
            repeats=self.objective.repeats,
            seed=self.args.seed,
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of one optimiser step; a new sum begins."""
        batches, labels = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._sum = TreeSum(len(self.step_rows))
        self._done = 0
        return batches, labels

    def training_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Add the gradients of a micro-batch's rows; the last one sets the sum of the step.

        Returns:
            The loss of the optimiser step, shape (), with its last micro-batch; 0 before.
        """
        del num_items_in_batch  # an objective knows the rows of its step itself
        if self._done == 0:
            self._contexts = self._prepared(model)
            self._trained = [one for one in model.parameters() if one.requires_grad]
        if not model.training:
            model.train()  # a walk through all modules
        for number in inputs[ROWS].tolist():
            self._sum.add(self._done, self._shard(model, number))
            self._done += 1
        if self._done < len(self.step_rows):
            return torch.zeros(())
        return self._finish(model)

    def floating_point_ops(self, inputs: Any) -> int:
        """Nobody reads the library's estimate, for which it walks through all parameters."""
        del inputs
        return 0

    def _prepared(self, model: Any) -> Sequence[Any]:
        step, rows = self.state.global_step, self.step_rows
        moment = Moment(
            number=step,
            seeds=[shard_seed(self.args.seed, step, shard) for shard in range(len(rows))],
            repeat=step % self.objective.repeats,
        )
        if self.objective.asks_network:
            model.eval()
        with torch.no_grad():
            return self.objective.prepare(model, [self.examples[row - 1] for row in rows], moment)

    def _shard(self, model: Any, number: int) -> torch.Tensor:
        """The gradients, loss and figures of the row `number` as one vector."""
        shard = self._done
        with seeded(shard_seed(self.args.seed, self.state.global_step, shard)):
            share = self.objective.share(model, self.examples[number - 1], self._contexts[shard])
            self._whole(model, share.loss).backward()
        return take_gradients(self._trained, (share.loss, *share.figures))

    def _whole(self, model: Any, loss: torch.Tensor) -> torch.Tensor:
        """A row's `loss` with what the adapter adds for the row."""
        penalty = self.change.row_penalty(model)
        return loss if penalty is None else loss + penalty / len(self.step_rows)

    def _finish(self, model: Any) -> torch.Tensor:
        names = self.objective.figures
        total = self._sum.total()
        size = len(total) - 1 - len(names)
        set_gradients(self._trained, self.objective.correct(model, total[:size]))
        means = (total[size + 1 :] / len(self.step_rows)).tolist()
        self.step_figures = dict(zip(names, means, strict=True))
        self.step_notes = self.objective.noted()
        return total[size] + self._penalty(model)

    def _penalty(self, model: Any) -> torch.Tensor:
        """What the adapter adds to the loss, shape (); its gradients are added to what is set."""
        penalty = self.change.penalty(model)
        if penalty is None:
            return torch.zeros(())
        penalty.backward()
        return penalty.detach()


def _numbers(rows: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
    return {ROWS: torch.tensor([row[ROWS] for row in rows])}


class ListedRows(torch.utils.data.Sampler[int]):
    """Rows in one order, every epoch.

    Args:
        order: Their indices.
    """

    def __init__(self, order: Sequence[int]) -> None:
        self._order = order

    def __len__(self) -> int:
        """How many indices an epoch has."""
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        """The indices of the next epoch."""
        return iter(self._order)


class RepeatedRows(torch.utils.data.Sampler[int]):
    """Rows in groups of an optimiser step, each group several times; what fills none is left out.

    Args:
        rows: How many rows there are.
        size: Rows of an optimiser step.
        repeats: How often a group comes.
        seed: Decides the order, which is another one in every epoch.
    """

    def __init__(self, *, rows: int, size: int, repeats: int, seed: int) -> None:
        self._rows = rows
        self._size = size
        self._repeats = repeats
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is next, from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        """How many indices an epoch has."""
        return self._rows // self._size * self._size * self._repeats

    def __iter__(self) -> Iterator[int]:
        """The indices of the next epoch."""
        generator = torch.Generator().manual_seed(shard_seed(self._seed, self._epoch, self._rows))
        order = torch.randperm(self._rows, generator=generator).tolist()
        for at in range(0, self._rows // self._size * self._size, self._size):
            yield from order[at : at + self._size] * self._repeats
