"""An adapter that lies beside a model's weights: its files and what they must say (ALG-20 to 24).

Some adapters are no change of a matrix: what a mixture of experts does depends on what it reads.
Such a model is its base's folder and the three files of the adapter in it. The packager, the
verifier and the runtime read them with this module; it needs the standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Self

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
BASE = "base.json"
FILES = (CONFIG, TENSORS, BASE)
"""What a model folder has beside a model's own files."""

MIXTURE = "KOLM_MOE_LORA"
TOP, SOFT = "top", "soft"
"""Of a token the likeliest experts speak; all of them do."""

PARTS = ("down", "router", "up")
"""The matrices beside a layer, as they are named in the file."""

DTYPES = ("BF16", "F16", "F32")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What a mixture computes beside a layer, without its matrices.

    Attributes:
        experts: Adapters beside each layer.
        top_k: How many of them speak of a token.
        routing: ``top``; ``soft`` where all of them speak, weighted.
        rank: Rank of each expert.
        alpha: An expert's change is scaled by `alpha` over `rank`.
    """

    experts: int
    top_k: int
    routing: str
    rank: int
    alpha: int

    def shapes(self, inputs: int, outputs: int) -> dict[str, tuple[int, int]]:
        """The shapes of `PARTS` beside a layer of so many `inputs` and `outputs`."""
        wide = self.experts * self.rank
        return {"down": (wide, inputs), "router": (self.experts, inputs), "up": (outputs, wide)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What ``adapter_config.json`` says.

    Attributes:
        routing: What is computed beside each layer.
        target_modules: The last names of the layers, sorted.
    """

    routing: Routing
    target_modules: tuple[str, ...]

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "experts": self.routing.experts,
            "lora_alpha": self.routing.alpha,
            "peft_type": MIXTURE,
            "r": self.routing.rank,
            "routing": self.routing.routing,
            "target_modules": list(self.target_modules),
            "top_k": self.routing.top_k,
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict.

        Raises:
            InvalidRecordError: It is of another kind of adapter, or not what `to_value` gives.
        """
        fields = Fields(value)
        found = fields.text("peft_type")
        if found != MIXTURE:
            raise InvalidRecordError(
                "an adapter that cannot stand beside the weights",
                where="peft_type",
                expected=repr(MIXTURE),
                actual=repr(found)[:80],
                advice="Merge it into the weights.",
            )
        made = cls(
            routing=Routing(
                experts=_positive(fields, "experts"),
                top_k=_positive(fields, "top_k"),
                routing=fields.text("routing"),
                rank=_positive(fields, "r"),
                alpha=_positive(fields, "lora_alpha"),
            ),
            target_modules=tuple(map(str, fields.array("target_modules"))),
        )
        fields.done()
        made._check()
        return made

    def _check(self) -> None:
        names, routing = self.target_modules, self.routing
        if routing.routing not in (TOP, SOFT):
            raise InvalidRecordError(
                "unknown value",
                where="routing",
                expected=f"{TOP} or {SOFT}",
                actual=repr(routing.routing)[:80],
            )
        if routing.top_k > routing.experts or (
            routing.routing == SOFT and routing.top_k != routing.experts
        ):
            raise InvalidRecordError(
                "another number of experts would speak than there are",
                where="top_k",
                expected=f"at most {routing.experts}, all of them where routing is {SOFT}",
                actual=str(routing.top_k),
            )
        if not names or list(names) != sorted(set(names)):
            raise InvalidRecordError(
                "not sorted names of layers", where="target_modules", actual=repr(names)[:80]
            )

    def wanted(self, base: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """Name and shape of every tensor beside a model whose tensors have the shapes `base`.

        Raises:
            InvalidRecordError: The model has no layer of one of the names.
        """
        layers = {
            path: shape
            for name, shape in base.items()
            for path, _, last in [name.rpartition(".")]
            if last == "weight" and path.rpartition(".")[2] in self.target_modules
        }
        missing = set(self.target_modules) - {path.rpartition(".")[2] for path in layers}
        if missing or any(len(shape) != 2 for shape in layers.values()):
            raise InvalidRecordError(
                "the adapter does not fit the model",
                where="target_modules",
                expected="names of its linear layers",
                actual=", ".join(sorted(missing)) or "a layer whose weight is no matrix",
            )
        return {
            f"{path}.{part}": shape
            for path, (outputs, inputs) in layers.items()
            for part, shape in self.routing.shapes(inputs, outputs).items()
        }

    def check(self, base: Mapping[str, Shape], found: Mapping[str, tuple[str, Shape]]) -> None:
        """Refuse tensors, given by dtype and shape, other than those beside a model of `base`.

        Raises:
            InvalidRecordError: One is missing, not wanted, or of another shape or dtype.
        """
        wanted = self.wanted(base)
        for name in sorted(wanted.keys() | found.keys()):
            (dtype, shape), want = found.get(name, ("none", ())), wanted.get(name)
            if shape != want or dtype not in DTYPES:
                raise InvalidRecordError(
                    "the adapter does not fit the model",
                    where=f"{TENSORS}: {name}",
                    expected="no such tensor" if want is None else f"{list(want)}, of floats",
                    actual=f"{dtype} {list(shape)}" if name in found else "missing",
                )


def has_adapter(names: AbstractSet[str]) -> bool:
    """Whether a model folder with files of these `names` has an adapter, or a part of one."""
    return not names.isdisjoint(FILES)


def check_complete(names: AbstractSet[str]) -> None:
    """Refuse a model folder that has some of an adapter's files and not all.

    Raises:
        InvalidRecordError: One is missing.
    """
    missing = sorted(set(FILES) - names)
    if missing:
        raise InvalidRecordError("a part of the adapter is missing", where=", ".join(missing))


def _positive(fields: Fields, name: str) -> int:
    value = fields.integer(name)
    if value < 1:
        raise InvalidRecordError("out of range", where=name, expected="above 0", actual=str(value))
    return value
