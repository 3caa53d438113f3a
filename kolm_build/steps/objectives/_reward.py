"""What objectives that train a reward model share: a head beside the network (RL-20 to RL-24)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from kolm_build.steps._objective import Moment, Objective
from kolm_build.steps._reward_head import RewardHead, attach, hidden_states

E = TypeVar("E")
HEAD = "reward_head"


class RewardObjective(Objective[E, int], Generic[E]):
    """A mean over a step's rows of a loss of the head's numbers; the head is kept."""

    kind: str
    """What the head judges."""

    def attach(self, network: Any) -> None:
        """Give the network its head."""
        attach(network, HEAD)

    def write(self, network: Any, out: Path) -> None:
        """Write the head beside the adapter, or into the model."""
        weight = network.get_submodule(HEAD).weight
        RewardHead(kind=self.kind, weight=weight.detach()).write(out)

    def prepare(self, network: Any, examples: Sequence[E], moment: Moment) -> Sequence[int]:
        """The number of rows of the step."""
        del network, moment
        return [len(examples)] * len(examples)

    def numbers(self, network: Any, ids: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        """What the head says of `ids` at `places`, shape (places,)."""
        hidden = hidden_states(network, ids)[torch.tensor(places)]
        return network.get_submodule(HEAD)(hidden)
