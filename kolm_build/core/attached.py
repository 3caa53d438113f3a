"""An adapter that lies beside a model's weights: its files and what they must say (ALG-20 to 24).

Some adapters are no change of a matrix: what a mixture of experts does depends on what it reads,
and virtual tokens stand before the row. Such a model is its base's folder and the three files of
the adapter in it. The packager, the verifier and the runtime read them with this module; it needs
the standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kolm_build.core.attached_files import VIRTUAL
from kolm_build.core.beside import check_tensors, layer_names, positive, tensors_at
from kolm_build.core.fields import Fields
from kolm_build.core.gated import GATED, Gated
from kolm_build.core.weight_names import EMBEDDING, Shape
from kolm_build.errors import InvalidRecordError

MIXTURE = "KOLM_MOE_LORA"
TOP, SOFT = "top", "soft"
"""Of a token the likeliest experts speak; all of them do."""

PREFIX, PROMPT = "PREFIX_TUNING", "PROMPT_TUNING"
PARTS = ("down", "router", "up")
"""The matrices beside a layer, as they are named in the file."""


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

    def shapes(self, inputs: int, outputs: int) -> Mapping[str, Shape]:
        """The shapes of `PARTS` beside a layer of so many `inputs` and `outputs`."""
        wide = self.experts * self.rank
        return {"down": (wide, inputs), "router": (self.experts, inputs), "up": (outputs, wide)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """What ``adapter_config.json`` says of a mixture.

    Attributes:
        routing: What is computed beside each layer.
        target_modules: The last names of the layers, sorted.
    """

    routing: Routing
    target_modules: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The ``peft_type``."""
        return MIXTURE

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
            InvalidRecordError: It is not what `to_value` gives.
        """
        fields = Fields(value)
        fields.text("peft_type")  # it chose the class
        made = cls(
            routing=Routing(
                experts=positive(fields, "experts"),
                top_k=positive(fields, "top_k"),
                routing=fields.text("routing"),
                rank=positive(fields, "r"),
                alpha=positive(fields, "lora_alpha"),
            ),
            target_modules=layer_names(fields),
        )
        fields.done()
        made._check()
        return made

    def _check(self) -> None:
        routing = self.routing
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

    def wanted(self, base: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """Name and shape of every tensor beside a model whose tensors have the shapes `base`.

        Raises:
            InvalidRecordError: The model has no layer of one of the names.
        """
        return tensors_at(self.target_modules, base, self.routing.shapes)

    def check(self, base: Mapping[str, Shape], found: Mapping[str, tuple[str, Shape]]) -> None:
        """Refuse tensors, given by dtype and shape, other than those beside a model of `base`.

        Raises:
            InvalidRecordError: One is missing, not wanted, or of another shape or dtype.
        """
        check_tensors(self.wanted(base), found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Virtual:
    """What ``adapter_config.json`` says of virtual tokens, in PEFT's words.

    Attributes:
        kind: The ``peft_type``: keys and values of every layer, or embeddings before the row.
        tokens: How many.
        layers: The model's attention layers.
        heads: Its heads of keys and values; of embeddings, PEFT's own figure.
        width: What a token has of keys in a layer, as many of values; of embeddings, features.
    """

    kind: str
    tokens: int
    layers: int
    heads: int
    width: int

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "num_attention_heads": self.heads,
            "num_layers": self.layers,
            "num_virtual_tokens": self.tokens,
            "peft_type": self.kind,
            "token_dim": self.width,
            **_FIXED,
            **_SHOWN[self.kind],
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict.

        Raises:
            InvalidRecordError: It is not what `to_value` gives.
        """
        fields = Fields(value)
        made = cls(
            kind=fields.text("peft_type"),
            tokens=positive(fields, "num_virtual_tokens"),
            layers=positive(fields, "num_layers"),
            heads=positive(fields, "num_attention_heads"),
            width=positive(fields, "token_dim"),
        )
        for name, want in {**_FIXED, **_SHOWN[made.kind]}.items():
            found = fields.take(name, type(want))
            if found != want:
                raise InvalidRecordError(
                    "another kind of adapter", where=name, expected=repr(want), actual=repr(found)
                )
        fields.done()
        return made

    @property
    def shape(self) -> Shape:
        """The shape of `VIRTUAL`."""
        return self.tokens, (2 * self.layers if self.kind == PREFIX else 1) * self.width

    def check(self, base: Mapping[str, Shape], found: Mapping[str, tuple[str, Shape]]) -> None:
        """Refuse tensors, given by dtype and shape, other than those beside a model of `base`.

        Raises:
            InvalidRecordError: One is missing, not wanted, or of another shape or dtype.
        """
        check_tensors({VIRTUAL: self.shape}, found)
        keys = [shape[0] for name, shape in base.items() if name.endswith("k_proj.weight")]
        words = base.get(EMBEDDING, (0, self.width))
        fits = words[1] == self.width
        if self.kind == PREFIX:
            fits = not keys or keys == [self.width] * self.layers
        if not fits:
            raise InvalidRecordError(
                "the adapter does not fit the model",
                where="token_dim",
                expected="that of the model's keys, in all layers, or of its embeddings",
                actual=f"{self.width}, {self.layers} layers",
            )


_FIXED: Mapping[str, object] = {
    "inference_mode": True,
    "num_transformer_submodules": 1,
    "task_type": "CAUSAL_LM",
}
_SHOWN: Mapping[str, Mapping[str, object]] = {
    PREFIX: {"prefix_projection": False},
    PROMPT: {"prompt_tuning_init": "RANDOM"},
}

Attached = Mixed | Gated | Virtual


def read_attached(value: object) -> Attached:
    """What the ``adapter_config.json`` of the plain `value` says, strict.

    Raises:
        InvalidRecordError: It is of another kind of adapter, or malformed.
    """
    kind = value.get("peft_type") if isinstance(value, Mapping) else None
    if kind == MIXTURE:
        return Mixed.from_value(value)
    if kind == GATED:
        return Gated.from_value(value)
    if kind in _SHOWN:
        return Virtual.from_value(value)
    raise InvalidRecordError(
        "an adapter that cannot stand beside the weights",
        where="peft_type",
        expected=" or ".join((MIXTURE, GATED, *_SHOWN)),
        actual=repr(kind)[:80],
        advice="Merge it into the weights.",
    )
