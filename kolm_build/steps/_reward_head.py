"""The scalar head of a reward or value model (RL-20 to RL-24).

A reward model is a model's folder with two files more: `reward_head.safetensors`, one vector w, and
`reward_head.json`, what it judges. The reward at a token is w . h, h the last hidden state there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import torch

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.loading import Model
from kolm_build.steps._files import REWARD_HEAD
from kolm_build.steps._tensors import tensor_of, weight_of
from kolm_build.steps._trace import diverged
from kolm_build.steps._weights import read_weights, write_weights

HEAD_FILE, WEIGHTS_FILE = REWARD_HEAD
FORMAT = "reward-head/1"
OUTCOME, PROCESS = "outcome", "process"
WEIGHT = "weight"
SEPARATOR = "\n"
"""What stands after each step of an answer that is judged step by step."""


class Head(torch.nn.Module):
    """One number for each hidden state; 0 before it is trained.

    Args:
        size: Elements of a hidden state.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The numbers, shape (tokens,), of `hidden`, shape (tokens, size)."""
        return (hidden.float() * self.weight).sum(dim=-1)


def attach(network: Any, name: str) -> None:
    """Give `network` a head under `name`; it is trained."""
    network.add_module(name, Head(network.get_input_embeddings().weight.shape[1]))


def hidden_states(network: Any, ids: Sequence[int]) -> torch.Tensor:
    """The last hidden state of each token, shape (tokens, size); vectors before them have none."""
    tokens = torch.tensor([ids])
    seen = network(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        output_hidden_states=True,
        logits_to_keep=1,
    )
    return seen.hidden_states[-1][0, -len(ids) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardHead:
    """A trained head.

    Attributes:
        kind: ``outcome`` for whole answers, ``process`` for their steps.
        weight: The vector, shape (size,), float32.
    """

    kind: str
    weight: torch.Tensor

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The head in `folder`.

        Raises:
            InvalidRecordError: The folder is not a reward model's.
        """
        if not (folder / HEAD_FILE).is_file():
            raise InvalidRecordError(
                "not a reward model",
                where="inputs.reward_model",
                expected=f"a model with {HEAD_FILE}, from a stage such as reward-bt",
            )
        try:
            fields = Fields(strict_json.loads((folder / HEAD_FILE).read_bytes()))
            kind = fields.text("kind")
            if fields.text("format") != FORMAT or kind not in (OUTCOME, PROCESS):
                raise InvalidRecordError("another format", expected=FORMAT)
            fields.done()
        except InvalidRecordError as error:
            raise error.in_file(HEAD_FILE) from None
        found = [one for one in read_weights(folder / WEIGHTS_FILE) if one.name == WEIGHT]
        if len(found) != 1 or len(found[0].shape) != 1 or found[0].dtype != "F32":
            raise InvalidRecordError(
                "not a head", file=WEIGHTS_FILE, where=WEIGHT, expected="one vector, F32"
            )
        return cls(kind=kind, weight=tensor_of(found[0]))

    def write(self, folder: Path) -> None:
        """Write the two files to `folder`."""
        if not torch.isfinite(self.weight).all():
            raise diverged(WEIGHTS_FILE, actual="NaN or an infinity")
        write_weights(folder / WEIGHTS_FILE, [weight_of(WEIGHT, self.weight.detach().clone())])
        (folder / HEAD_FILE).write_bytes(strict_json.dumps({"format": FORMAT, "kind": self.kind}))

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """The numbers, shape (tokens,), of `hidden`, shape (tokens, size)."""
        return (hidden.float() * self.weight).sum(dim=-1)


def step_ends(
    chat: Any, prompt: Sequence[int], steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The tokens of an answer in steps, and where each step ends.

    Args:
        chat: The tokenizer.
        prompt: The prompt's tokens.
        steps: The steps; each is made tokens alone, `SEPARATOR` after it.

    Returns:
        All token ids, and for each step the index of its last token.
    """
    ids, ends = list(prompt), []
    for step in steps:
        ids += chat.tokenizer.encode(step + SEPARATOR, add_special_tokens=False).ids
        ends.append(len(ids) - 1)
    return ids, ends


def outcome(
    model: Model, head: RewardHead, messages: Sequence[Mapping[str, str]], answer: str
) -> float:
    """What a reward model gives `answer`.

    A head of the kind ``outcome`` is asked at the token that ends the answer; one of the kind
    ``process`` at the end of every line that is not blank, and the probabilities that the steps
    are right are multiplied (arXiv:2305.20050, section 2.6).

    Raises:
        InvalidDataError: The answer does not fit the model's window.
    """
    prompt = model.chat.prompt_ids(messages)
    if head.kind == OUTCOME:
        ids = [*prompt, *model.chat.answer_ids(answer)]
        model.check_length(len(ids))
        return float(head.of(hidden_states(model.network, ids)[-1:])[0])
    steps = [line for line in answer.split(SEPARATOR) if line.strip()]
    if not steps:
        return 0.0
    ids, ends = step_ends(model.chat, prompt, steps)
    model.check_length(len(ids))
    found = head.of(hidden_states(model.network, ids)[torch.tensor(ends)])
    return prod(torch.sigmoid(found).tolist())
