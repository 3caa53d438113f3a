"""Parameters in groups, as TRL's own optimiser has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from kolm_build.steps._pinned import SFT_PINNED
from kolm_build.steps._training_params import TrainingParams

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
"""A layer's number in a parameter's name."""

_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)
BETAS = (0.9, 0.999)
EPSILON = 1e-8
assert (SFT_PINNED["adam_beta1"], SFT_PINNED["adam_beta2"]) == BETAS
assert SFT_PINNED["adam_epsilon"] == EPSILON

Named = tuple[str, torch.nn.Parameter]


def trained(network: Any) -> list[Named]:
    """The parameters that are trained, by name, in the network's order."""
    return [(name, one) for name, one in network.named_parameters() if one.requires_grad]


def decays(name: str) -> bool:
    """Whether the parameter `name` decays: not a bias, nor of a normalisation, as in TRL."""
    return _NO_DECAY.search(name) is None


def groups(
    named: Iterable[Named], training: TrainingParams, rate: Callable[[str], float]
) -> list[dict[str, Any]]:
    """Groups of equal decay and rate.

    Args:
        named: The parameters.
        training: Gives rate and decay.
        rate: What a parameter's rate is multiplied by, by its name.

    Returns:
        As torch's optimisers take them; those at the recipe's own rate come first, since it is the
        first group's rate that is noted.
    """
    made: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, one in named:
        made.setdefault((rate(name), decays(name)), []).append(one)
    order = sorted(made, key=lambda key: (key[0] != 1, key[0], not key[1]))
    return [
        {
            "params": made[factor, falls],
            "lr": training.learning_rate * factor,
            "weight_decay": training.weight_decay if falls else 0.0,
        }
        for factor, falls in order
    ]


def adamw(grouped: list[dict[str, Any]], training: TrainingParams) -> torch.optim.AdamW:
    """Torch's fused AdamW over `grouped`, as TRL makes it."""
    return torch.optim.AdamW(
        grouped, lr=training.learning_rate, betas=BETAS, eps=EPSILON, fused=True
    )


def layers_of(named: Iterable[Named]) -> Mapping[int, list[torch.nn.Parameter]]:
    """The parameters of each layer, by its number."""
    made: dict[int, list[torch.nn.Parameter]] = {}
    for name, one in named:
        found = LAYER.search(name)
        if found is not None:
            made.setdefault(int(found[1]), []).append(one)
    return dict(sorted(made.items()))
