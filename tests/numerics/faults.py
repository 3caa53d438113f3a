"""One wrong rounding, planted in one operation of one optimiser step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch.utils._python_dispatch import TorchDispatchMode

OPTIMISER = "aten._fused_adamw_.default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where the fault is.

    Attributes:
        step: The optimiser step, from 1.
        name: The operation.
        occurrence: Which of the step's operations of that name, from 0.
        role: Which of its tensors: ``output N``, or ``self[N]``.
        index: Which element, in row-major order.
        ulps: How many numbers above the right one the wrong one is.
    """

    step: int
    name: str
    occurrence: int = 0
    role: str = "output 0"
    index: int = 0
    ulps: int = 1


class Fault(TorchDispatchMode):
    """Replaces the planned element, of float32, by a number further from zero."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self._step, self._seen = 1, 0
        self.values: tuple[float, float] | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if name == self._plan.name and self._step == self._plan.step:
            if self._seen == self._plan.occurrence:
                self._strike(result, args)
            self._seen += 1
        if name == OPTIMISER:
            self._step, self._seen = self._step + 1, 0
        return result

    def _strike(self, result, args):
        if self._plan.role.startswith("self"):
            tensor = args[0][int(self._plan.role[5:-1])]
        else:
            made = result if isinstance(result, tuple) else (result,)
            tensor = made[int(self._plan.role.removeprefix("output "))]
        values = tensor.detach().numpy()  # its own memory, in its own layout
        at = np.unravel_index(self._plan.index, values.shape)
        before = np.float32(values[at])
        values[at] = (before.view(np.int32) + np.int32(self._plan.ulps)).view(np.float32)
        self.values = float(before), float(values[at])
