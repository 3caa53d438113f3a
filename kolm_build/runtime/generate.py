"""Generation, token by token, and likelihoods (spec/evaluation.md).

Prompts are never padded: those of equal length are read together, so that every row is computed
on its own tokens and nothing else. What was read can be joined and continued together
(`kolm_build.runtime.ragged`). Ties go to the lowest token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass
from math import fsum
from typing import Any, Protocol

import torch

from kolm_build.errors import BuildError


class Reader(Protocol):
    """What has read some prompts and can read on."""

    @property
    def logits(self) -> torch.Tensor:
        """What it expects after the prompts, float32, rows by vocabulary."""

    def read(self, chosen: torch.Tensor) -> torch.Tensor:
        """What it expects after one token more of each row, `chosen`; float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Prompts that a network has read; a `Reader`.

    Attributes:
        network: The network.
        cache: Its keys and values for the prompts.
        logits: What it expects next, float32, rows by vocabulary.
    """

    network: Any
    cache: Any
    logits: torch.Tensor

    def read(self, chosen: torch.Tensor) -> torch.Tensor:
        """What the network expects after one token more of each row; float32."""
        return next_logits(self, chosen, {})

    def repeated(self, times: int) -> Prefix:
        """Each prompt `times` times, one after the other; this prefix is used up."""
        self.cache.batch_repeat_interleave(times)
        return Prefix(
            network=self.network,
            cache=self.cache,
            logits=self.logits.repeat_interleave(times, dim=0),
        )


Choose = Callable[[torch.Tensor, int], torch.Tensor]
"""Of logits, rows by vocabulary, and the number of a token, from 0, a token for each row."""


def read_prompts(network: Any, prompts: Sequence[Sequence[int]]) -> Prefix:
    """Let `network` read `prompts`, token ids of one length."""
    return read_on(network, None, prompts)


def reads(network: Any) -> Callable[[Any, Sequence[int]], Prefix]:
    """What lets `network` read one prompt after what is in a cache; None for none."""
    return lambda cache, ids: read_on(network, cache, [ids])


def read_on(network: Any, cache: Any, prompts: Sequence[Sequence[int]]) -> Prefix:
    """Let `network` read `prompts`, token ids of one length, after what is in `cache`."""
    with torch.inference_mode():
        seen = network(
            input_ids=torch.tensor(prompts),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return Prefix(
        network=network, cache=seen.past_key_values, logits=_finite(seen.logits[:, -1].float())
    )


def continue_greedily(
    prefix: Reader, *, max_new_tokens: int, stop_ids: Set[int]
) -> list[list[int]]:
    """The likeliest continuation of each prompt, token by token, a stop token included.

    Args:
        prefix: The prompts; its cache is used up.
        max_new_tokens: Most tokens of a continuation.
        stop_ids: Tokens that end one.
    """
    return continue_by(prefix, _likeliest, max_new_tokens=max_new_tokens, stop_ids=stop_ids)


def continue_by(
    reader: Reader, choose: Choose, *, max_new_tokens: int, stop_ids: Set[int]
) -> list[list[int]]:
    """A continuation of each prompt, token by token, a stop token included.

    Args:
        reader: What has read the prompts; it is used up.
        choose: Says which token follows.
        max_new_tokens: Most tokens of a continuation.
        stop_ids: Tokens that end one.
    """
    outputs: list[list[int]] = [[] for _ in range(len(reader.logits))]
    going = set(range(len(outputs)))
    logits = reader.logits
    for step in range(max_new_tokens):
        chosen = choose(logits, step)
        for row in sorted(going):
            outputs[row].append(int(chosen[row]))
            if outputs[row][-1] in stop_ids:
                going.remove(row)
        if not going or step + 1 == max_new_tokens:
            break
        logits = reader.read(chosen)
    return outputs


def _likeliest(logits: torch.Tensor, step: int) -> torch.Tensor:
    del step
    return logits.argmax(dim=-1)


def log_likelihoods(prefix: Prefix, continuations: Sequence[Sequence[int]]) -> list[list[float]]:
    """The log-probability of each of `continuations` after each prompt.

    Args:
        prefix: The prompts.
        continuations: Token ids, all of one length.

    Returns:
        For each prompt a figure for each continuation.
    """
    rows, count, length = len(prefix.logits), len(continuations), len(continuations[0])
    ids = torch.tensor(continuations).repeat(rows, 1)
    with torch.inference_mode():
        logits = prefix.logits.repeat_interleave(count, dim=0)[:, None]
        if length > 1:
            cache = deepcopy(prefix.cache)
            cache.batch_repeat_interleave(count)
            seen = prefix.network(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
            logits = torch.cat([logits, _finite(seen.logits.float())], dim=1)
        chances = logits.log_softmax(dim=-1).gather(-1, ids[..., None])
    totals = [fsum(tokens) for tokens in chances.squeeze(-1).tolist()]
    return [totals[row * count : (row + 1) * count] for row in range(rows)]


def next_logits(
    prefix: Prefix, chosen: torch.Tensor, where: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """What `prefix`'s network expects after `chosen`, a token more of each row; float32.

    Args:
        prefix: What was read.
        chosen: The tokens, shape (rows,).
        where: Positions and mask by the network's names, where rows have several lengths.
    """
    with torch.inference_mode():
        seen = prefix.network(
            input_ids=chosen[:, None], past_key_values=prefix.cache, use_cache=True, **where
        )
    return _finite(seen.logits[:, -1].float())


def _finite(logits: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(logits).all():
        raise BuildError(
            "the model computes values that are not numbers",
            where="logits",
            advice="The weights are damaged, or their range is too large for the dtype.",
        )
    return logits
