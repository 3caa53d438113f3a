"""TRL's trainer, made quiet and quick (spec/sft.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from trl import SFTTrainer

from kolm_build.core.schedule import Schedule
from kolm_build.steps._checkpoint import Checkpoint

ROWS = "row"
"""The column that holds a row's number, from 1."""


class NumberedCollator:
    """A collator that keeps the rows' numbers beside what `collate` makes of the rows."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A micro-batch, and under `ROWS` a list of integers."""
        numbers = [example[ROWS] for example in examples]
        rows = [{name: row[name] for name in row if name != ROWS} for row in examples]
        return {**self._collate(rows), ROWS: torch.tensor(numbers)}


class AnswerTrainer(SFTTrainer):
    """TRL's trainer with its telemetry off and its loss computed on the answers alone.

    The mean negative log-likelihood of the answers' tokens is TRL's own `nll`; but off a GPU TRL
    projects every position of a row on the whole vocabulary, which is half of a step's time, and
    here only the columns of the batch that hold a label are.
    """

    step_rows: list[int]
    """Numbers of the rows of the optimiser step that runs, in the order in which they came."""

    lr_scheduler: LRScheduler | None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of one optimiser step; their rows are noted."""
        batches, labels = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_rows[:] = [int(row) for batch in batches for row in batch[ROWS]]
        return batches, labels

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 -- the library's signature
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The loss of one micro-batch: its sum over the tokens of the whole optimiser step."""
        assert not return_outputs, "the trainer evaluates nothing"
        assert num_items_in_batch is not None, "the trainer counts the labels of a step"
        labels = inputs["labels"][:, 1:]
        columns = (labels >= 0).any(dim=0).nonzero().squeeze(1)
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            logits_to_keep=columns,
        ).logits
        kept = labels[:, columns]
        wanted = kept >= 0
        total = torch.nn.functional.cross_entropy(
            logits[wanted].float(), kept[wanted], reduction="sum"
        )
        return total / num_items_in_batch

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """The scheduler of the learning rate (SFT-13): the library's asks libm for a cosine."""
        if self.lr_scheduler is None:
            schedule = Schedule(
                kind=self.args.lr_scheduler_type.value,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                steps=num_training_steps,
            )
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, schedule.factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    checkpoint: Checkpoint | None = None
    """What the training goes on from."""

    def go_on(self, scratch: Path) -> None:
        """Train; from the checkpoint on if there is one.

        Args:
            scratch: A folder to write in.
        """
        if self.checkpoint is None:
            self.train()
        else:
            self.train(str(self.checkpoint.write_state(scratch / "resumed", self.args)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The library would unpickle a file."""
        del resume_from_checkpoint, model
        assert self.checkpoint is not None
        self.checkpoint.restore_parameters(self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The library would unpickle files."""
        del checkpoint
        if self.checkpoint is None:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        self.checkpoint.restore_optimiser(self.optimizer, self.model)
        self.lr_scheduler.last_epoch = self.checkpoint.step
        rates = self.lr_scheduler.get_lr()
        self.lr_scheduler._last_lr = rates  # noqa: SLF001 -- as its own load_state_dict does
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The library would unpickle a file."""
        del checkpoint
        if self.checkpoint is not None:
            self.checkpoint.restore_generator()

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""


def shard_seed(seed: int, step: int, shard: int) -> int:
    """What the generator of a shard is seeded with: 32 bits (spec/numerics.md, NUM-115)."""
    text = f"kolm_build 2026 shard v1 {seed} {step} {shard}"
    return int.from_bytes(sha256(text.encode()).digest()[:4])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's default generator, and put its state back in the end."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
