"""X-LoRA beside a model's layers: adapters that were trained before, mixed by what a model reads.

Its files hold the adapters as they were and the gating network that mixes them (MOE-40 to 47).
Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kolm_build.core.attached_files import GATE, TRUNK
from kolm_build.core.beside import Base, check_tensors, layer_names, positive, tensors_at
from kolm_build.core.fields import Fields
from kolm_build.core.weight_names import EMBEDDING, Shape
from kolm_build.errors import InvalidRecordError

GATED = "KOLM_X_LORA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert:
    """One adapter of those that are mixed.

    Attributes:
        rank: Its rank.
        alpha: Its change is scaled by `alpha` over `rank`.
        is_stabilised: Whether it is scaled by `alpha` over the root of `rank` instead.
    """

    rank: int
    alpha: int
    is_stabilised: bool = False

    @property
    def scale(self) -> float:
        """What its B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.is_stabilised else self.rank)

    def to_value(self) -> dict[str, object]:
        """The plain value, in PEFT's words."""
        return {"lora_alpha": self.alpha, "r": self.rank, "use_rslora": self.is_stabilised}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict.

        Raises:
            InvalidRecordError: It is not what `to_value` gives.
        """
        fields = Fields(value)
        made = cls(
            rank=positive(fields, "r"),
            alpha=positive(fields, "lora_alpha"),
            is_stabilised=fields.flag("use_rslora"),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """What ``adapter_config.json`` says of X-LoRA.

    Attributes:
        experts: The adapters, in their order.
        top_k: How many of them speak of a token.
        hidden_size: Features of the model's last hidden state.
        widths: Outputs of each layer of the gating network before its last.
        target_modules: The last names of the adapted layers, sorted.
    """

    experts: tuple[Expert, ...]
    top_k: int
    hidden_size: int
    widths: tuple[int, ...]
    target_modules: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The ``peft_type``."""
        return GATED

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "experts": [one.to_value() for one in self.experts],
            "hidden_size": self.hidden_size,
            "peft_type": GATED,
            "target_modules": list(self.target_modules),
            "top_k": self.top_k,
            "widths": list(self.widths),
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict.

        Raises:
            InvalidRecordError: It is not what `to_value` gives.
        """
        fields = Fields(value)
        fields.text("peft_type")  # it chose the class
        made = cls(
            experts=fields.records("experts", Expert.from_value),
            top_k=positive(fields, "top_k"),
            hidden_size=positive(fields, "hidden_size"),
            widths=fields.records("widths", _width),
            target_modules=layer_names(fields),
        )
        fields.done()
        made._check()
        return made

    def _check(self) -> None:
        if self.top_k > len(self.experts):
            raise InvalidRecordError(
                "more adapters would speak than there are",
                where="top_k",
                expected=f"at most {len(self.experts)}",
                actual=str(self.top_k),
            )

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each adapter."""
        return tuple(one.rank for one in self.experts)

    def wanted(self, base: Base) -> Mapping[str, Shape]:
        """Name and shape of every tensor beside a model whose tensors have the shapes `base`.

        Raises:
            InvalidRecordError: The model has no layer of one of the names.
        """
        return self._trunk() | tensors_at(self.target_modules, base, self._shapes)

    def _shapes(self, inputs: int, outputs: int) -> Mapping[str, Shape]:
        """The shapes of `PARTS` beside a layer of so many `inputs` and `outputs`."""
        count, together = len(self.experts), sum(self.ranks)
        return {
            "down": (together, inputs),
            GATE: (count, (self.hidden_size, *self.widths)[-1]),
            "gate_bias": (count,),
            "up": (outputs, together),
        }

    def _trunk(self) -> dict[str, Shape]:
        found: dict[str, Shape] = {}
        for number, width in enumerate(self.widths):
            before = (self.hidden_size, *self.widths)[number]
            found |= {
                f"{TRUNK}{number}.weight": (width, before),
                f"{TRUNK}{number}.bias": (width,),
            }
        return found

    def check(self, base: Base, found: Mapping[str, tuple[str, Shape]]) -> None:
        """Refuse tensors, given by dtype and shape, other than those beside a model of `base`.

        Raises:
            InvalidRecordError: One is missing, not wanted, or of another shape or dtype; or the
                model has another width.
        """
        check_tensors(self.wanted(base), found)
        words = base.get(EMBEDDING, (0, self.hidden_size))
        if words[1] != self.hidden_size:
            raise InvalidRecordError(
                "the adapter does not fit the model",
                where="hidden_size",
                expected=str(words[1]),
                actual=str(self.hidden_size),
            )


def _width(value: object) -> int:
    if type(value) is not int or value < 1:
        raise InvalidRecordError(
            "not a width", expected="an integer above 0", actual=repr(value)[:80]
        )
    return value
