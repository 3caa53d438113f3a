"""TRL's trainer, made quiet and quick (spec/sft.md)."""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer


class AnswerTrainer(SFTTrainer):
    """TRL's trainer with its telemetry off and its loss computed on the answers alone.

    The mean negative log-likelihood of the answers' tokens is TRL's own `nll`; but off a GPU TRL
    projects every position of a row on the whole vocabulary, which is half of a step's time, and
    here only the columns of the batch that hold a label are.
    """

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

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""
