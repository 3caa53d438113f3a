"""What a model says to each row: its greedy answer and the likeliest label (spec/evaluation.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from kolm_build.errors import InvalidDataError
from kolm_build.runtime.generate import (
    Prefix,
    continue_greedily,
    log_likelihoods,
    read_prompts,
)
from kolm_build.runtime.loading import Model
from kolm_build.runtime.ragged import joined
from kolm_build.steps._conversations import Conversation
from kolm_build.steps._params import EvaluateParams

LABELS_AT_ONCE = 8
"""Most labels that are tried in one pass: each needs a copy of the prompts' cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a model said to one row.

    Attributes:
        text: Its greedy answer.
        label: The label it finds likeliest; None without labels.
        prompt_tokens: Number of tokens it read.
        output_tokens: Number of tokens it said, the end included.
    """

    text: str
    label: str | None
    prompt_tokens: int
    output_tokens: int


def outputs_of(
    model: Model,
    rows: Sequence[Conversation],
    params: EvaluateParams,
    on_rows: Callable[[int], None],
    *,
    mixed: bool = False,
) -> list[Output]:
    """The model's outputs, in the order of `rows`.

    Args:
        model: The model.
        rows: The rows.
        params: How to ask.
        on_rows: Is told how many rows are done.
        mixed: Whether prompts of several lengths may be continued together; only where that
            changes no bit, under `portable-1`.

    Raises:
        InvalidDataError: A row does not fit the model's window.
    """
    prompts = [_prompt(model, number, row, params) for number, row in enumerate(rows, 1)]
    labels = {label: model.chat.answer_ids(label) for label in params.labels}
    outputs: dict[int, Output] = {}
    for batch in batches([len(prompt) for prompt in prompts], params.batch_size, mixed=mixed):
        said = _outputs(model, [prompts[index] for index in batch], labels, params)
        outputs |= dict(zip(batch, said, strict=True))
        on_rows(len(outputs))
    return [outputs[index] for index in range(len(rows))]


def batches(lengths: Sequence[int], size: int, *, mixed: bool = False) -> Iterator[list[int]]:
    """The indices of `lengths` in runs of at most `size`, shortest first.

    Args:
        lengths: The lengths.
        size: Most indices of a run.
        mixed: Whether a run may hold several lengths.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    start = 0
    while start < len(order):
        end = start + 1
        while end < min(start + size, len(order)) and (
            mixed or lengths[order[end]] == lengths[order[start]]
        ):
            end += 1
        yield order[start:end]
        start = end


def _prompt(model: Model, number: int, row: Conversation, params: EvaluateParams) -> list[int]:
    prompt = model.chat.prompt_ids(row.messages)
    try:
        model.check_length(len(prompt) + params.max_new_tokens)
    except InvalidDataError as error:
        raise error.under(f"row {number} ({row.id})").in_file("holdout.jsonl") from None
    return prompt


def _outputs(
    model: Model,
    prompts: Sequence[Sequence[int]],
    labels: Mapping[str, Sequence[int]],
    params: EvaluateParams,
) -> list[Output]:
    prefixes = [
        read_prompts(model.network, list(group))
        for _, group in groupby(prompts, key=len)  # a batch is sorted by length
    ]
    likeliest = [label for prefix in prefixes for label in _likeliest(prefix, labels)]
    said = continue_greedily(
        joined(prefixes, room=params.max_new_tokens),
        max_new_tokens=params.max_new_tokens,
        stop_ids=model.chat.stop_ids,
    )
    return [
        Output(
            text=model.chat.text(ids),
            label=label,
            prompt_tokens=len(prompt),
            output_tokens=len(ids),
        )
        for prompt, ids, label in zip(prompts, said, likeliest, strict=True)
    ]


def _likeliest(prefix: Prefix, labels: Mapping[str, Sequence[int]]) -> list[str | None]:
    """For each prompt the label with the largest likelihood; the first of equals."""
    if not labels:
        return [None] * len(prefix.logits)
    names = list(labels)
    scores: dict[int, list[float]] = {}
    for group in batches([len(ids) for ids in labels.values()], LABELS_AT_ONCE):
        found = log_likelihoods(prefix, [labels[names[index]] for index in group])
        scores |= dict(zip(group, map(list, zip(*found, strict=True)), strict=True))
    return [
        names[max(range(len(names)), key=lambda index: scores[index][row])]
        for row in range(len(prefix.logits))
    ]
