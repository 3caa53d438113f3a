"""A network of a few small tables, and what NumPy makes of the same numbers.

The logits after a token are its row of one table times another table: so a whole optimiser step
of an objective, masks, references and means included, can be worked out beside it in float64, and
differentiated by finite differences.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch

from kolm_build.core.fields import Fields

WORDS, WIDTH = 6, 4
KINDS = ("q_proj", "k_proj", "v_proj")
EMBED, HEAD = "embed.weight", "head.weight"
WHOLE = {"relation_heads"}
"""Parameters that are whole numbers; the others are decimals."""


class Tables(torch.nn.Module):
    """No token sees another; the projections are looked at and change nothing."""

    def __init__(self, seed, words=WORDS):
        super().__init__()
        self.embed = torch.nn.Embedding(words, WIDTH)
        self.head = torch.nn.Linear(WIDTH, words, bias=False)
        self.model = torch.nn.Module()
        attention = torch.nn.Module()
        for kind in KINDS:
            attention.add_module(kind, torch.nn.Linear(WIDTH, WIDTH, bias=False))
        layer = torch.nn.Module()
        layer.self_attn = attention
        self.model.layers = torch.nn.ModuleList([layer])
        draw = torch.Generator().manual_seed(seed)
        for one in self.parameters():
            one.data = torch.randn(one.shape, generator=draw) * 0.7

    def get_input_embeddings(self):
        return self.embed

    def forward(self, *, input_ids, attention_mask, logits_to_keep, output_hidden_states=False):
        del attention_mask, output_hidden_states
        hidden = self.embed(input_ids)
        for kind in KINDS:
            getattr(self.model.layers[0].self_attn, kind)(hidden)
        logits = self.head(hidden)
        kept = logits[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else None
        return SimpleNamespace(
            logits=logits[:, logits_to_keep] if kept is None else kept, hidden_states=(hidden,)
        )


class Reference:
    """An adapter's `reference`: the network with the numbers of another."""

    def __init__(self, other):
        self._state = other.state_dict()

    @contextmanager
    def reference(self, network):
        kept = {name: one.clone() for name, one in network.state_dict().items()}
        network.load_state_dict(self._state, strict=False)
        try:
            yield network
        finally:
            network.load_state_dict(kept)


def objective(name, **params):
    """The objective `name` of the catalogue."""
    place = "" if name == "sft" else "objectives."
    module = importlib.import_module(f"kolm_build.steps.{place}{name.replace('-', '_')}")
    fields = Fields({key: value if key in WHOLE else str(value) for key, value in params.items()})
    made = module.TAKE(fields)
    fields.done()
    return made


def numbers_of(network):
    """Its parameters by name, float64."""
    return {name: one.detach().double().numpy().copy() for name, one in network.named_parameters()}


def logs(logits):
    """The log-softmax of the last axis."""
    raised = logits - logits.max(axis=-1, keepdims=True)
    return raised - np.log(np.exp(raised).sum(axis=-1, keepdims=True))


def logits_at(numbers, sequence):
    """The logits that expect each token after the prompt, shape (tokens, words)."""
    before = list(sequence.ids[sequence.start - 1 : -1])
    return numbers[EMBED][before] @ numbers[HEAD].T


def token_logs(numbers, sequence):
    """Log p of each token after the prompt, shape (tokens,)."""
    said = list(sequence.ids[sequence.start :])
    return logs(logits_at(numbers, sequence))[range(len(said)), said]


def check(network, shares, by_hand):
    """Loss and gradient of a step, against `by_hand` of its numbers and its differences.

    Args:
        network: The network.
        shares: Gives the rows' shares, in turn.
        by_hand: The loss, of the parameters by name.
    """
    network.zero_grad()
    loss = sum(one.loss for one in shares())
    loss.backward()
    numbers = numbers_of(network)
    wanted = by_hand(numbers)
    assert abs(loss.item() - wanted) < 1e-6 * max(1.0, abs(wanted)), (loss.item(), wanted)
    moved = 0.0
    for name, one in network.named_parameters():
        found = np.zeros(one.shape) if one.grad is None else one.grad.double().numpy()
        slopes = differences(by_hand, numbers, name)
        scale = max(1.0, np.abs(slopes).max())
        np.testing.assert_allclose(found, slopes, rtol=0, atol=1e-6 * scale, err_msg=name)
        moved = max(moved, np.abs(slopes).max())
    assert moved > 1e-3, "the case says nothing: its gradient is nearly zero"


def differences(by_hand, numbers, name, step=1e-6):
    """The derivative of `by_hand` by each number of one table: central differences."""
    table = numbers[name]
    out = np.zeros_like(table)
    for place in np.ndindex(table.shape):
        ends = []
        for sign in (1, -1):
            moved = table.copy()
            moved[place] += sign * step
            ends.append(by_hand({**numbers, name: moved}))
        out[place] = (ends[0] - ends[1]) / (2 * step)
    return out
