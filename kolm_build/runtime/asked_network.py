"""A network of torch's that answers: its `Reader`, with numbers in NumPy's arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kolm_build.runtime.generate import Reader
from kolm_build.runtime.reading import Floats


@dataclass(frozen=True, slots=True)
class AskedNetwork:
    """Prompts that a network has read, to be answered.

    Attributes:
        reader: What has read them.
    """

    reader: Reader

    @property
    def logits(self) -> Floats:
        """What it expects after the prompts, float32, rows by vocabulary."""
        return _array(self.reader.logits)

    def read(self, chosen: Sequence[int]) -> Floats:
        """What it expects after one token more of each row, `chosen`; float32."""
        return _array(self.reader.read(torch.tensor(chosen)))

    def chances(self, logits: Floats, temperature: float) -> Floats:
        """The probabilities of one row's `logits` over `temperature`."""
        return _array((torch.from_numpy(logits) / temperature).softmax(dim=-1))


def asked(join: Callable[..., Reader]) -> Callable[..., AskedNetwork]:
    """`join`, whose prompts are then answered."""

    def run(prefixes: Sequence[object], *, room: int) -> AskedNetwork:
        return AskedNetwork(join(prefixes, room=room))

    return run


def _array(tensor: torch.Tensor) -> Floats:
    found: Floats = tensor.numpy()
    return found
