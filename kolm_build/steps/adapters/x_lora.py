"""``x-lora``: adapters that were trained before, mixed by a gating network (arXiv:2402.07148).

A token's counts are the softmax of what a small network makes of its last hidden state, read
without adapters; each layer has counts of its own. The gating network alone is trained. It begins
with equal counts, the mean of the adapters' changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from kolm_build.core.attached_files import TRUNK
from kolm_build.core.fields import Fields
from kolm_build.core.gated import Expert, Gated
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.gated import GatedLinear, attach_gated, gated, gating_of
from kolm_build.runtime.weights import COMPUTE_DTYPES
from kolm_build.steps._adapter import CONFIG, Adapter
from kolm_build.steps._adapter_kinds import LORA
from kolm_build.steps._base import PLAIN
from kolm_build.steps._bounds import choice, count
from kolm_build.steps._files import input_folder
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps._weights import Weight, read_weights
from kolm_build.steps.adapters._change import Change
from kolm_build.steps.adapters._files import finite, write_adapter

ROLE = "adapters"
DOWN, UP = "lora_A.weight", "lora_B.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class XLoraParams:
    """What a recipe may say of a mixture of adapters that were trained before.

    Attributes:
        top_k: How many of them speak of a token; 0 for all.
        depth: Layers of the gating network, its last one of each adapted layer included.
        size: Width of its layers but the last.
        adapter_dtype: How the gating network is stored; it is trained in float32.
    """

    top_k: int
    depth: int
    size: int
    adapter_dtype: str

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The parameters in `fields`; what is left out has the value given here."""
        return cls(
            top_k=count(fields, "top_k", 0, least=0),
            depth=count(fields, "xlora_depth", 1),
            size=count(fields, "xlora_size", 64),
            adapter_dtype=choice(fields, "adapter_dtype", "fp32", DTYPES),
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Outputs of each layer of the gating network before its last."""
        return (self.size,) * (self.depth - 1)


class XLora(Change):
    """A mixture of adapters that were trained before.

    Args:
        params: The recipe's words.
    """

    def __init__(self, params: XLoraParams) -> None:
        self.params = params
        self.adapters: tuple[Adapter, ...] = ()

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The mixture that `fields` describe."""
        return cls(XLoraParams.take(fields))

    def receive(self, request: StepRequest) -> None:
        """Read the inputs `adapters-1`, `adapters-2`, ….

        Raises:
            InvalidRecordError: There is none, one is no LoRA of the model, or they adapt other
                layers; or more are to speak than there are.
        """
        weights = read_weights(input_folder(request, "model") / "model.safetensors")
        roles = adapter_roles(request.inputs)
        self.adapters = tuple(_read(request, role, weights) for role in roles)
        check_alike(self.adapters, roles)
        if self.params.top_k > len(roles):
            raise InvalidRecordError(
                "more adapters would speak than there are",
                where="top_k",
                expected=f"at most {len(roles)}",
                actual=str(self.params.top_k),
            )

    def said(self, hidden_size: int) -> Gated:
        """What a network with last hidden states of `hidden_size` features computes."""
        names = {path.rpartition(".")[2] for path in self.adapters[0].layers}
        return Gated(
            experts=tuple(map(expert_of, self.adapters)),
            top_k=self.params.top_k or len(self.adapters),
            hidden_size=hidden_size,
            widths=self.params.widths,
            target_modules=tuple(sorted(names)),
        )

    def attach(self, network: Any) -> Any:
        """`network` with its layers gated, all but the gating network frozen."""
        network.requires_grad_(requires_grad=False)
        hidden_size = int(network.config.get_text_config().hidden_size)
        said = self.said(hidden_size)
        made = attach_gated(network, said, first_tensors(said, self.adapters))
        made.requires_grad_(requires_grad=True)
        for _, layer in gated(network):
            layer.gate.requires_grad_(requires_grad=True)
            layer.gate_bias.requires_grad_(requires_grad=True)
        return network

    def write(self, network: Any, *, base: Path, out: Path) -> None:
        """Write adapters and gates, what they are, and the base's digest (MOE-46)."""
        hidden_size = int(network.config.get_text_config().hidden_size)
        state = state_of(network, COMPUTE_DTYPES[self.params.adapter_dtype])
        write_adapter(finite(state), self.said(hidden_size).to_value(), base=base, out=out)

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network as the stage began, the mean of its adapters (ALG-5, MOE-43)."""
        return _even([layer for _, layer in gated(network)])


@contextmanager
def _even(layers: Sequence[GatedLinear]) -> Iterator[None]:
    for layer in layers:
        layer.is_even = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_even = False


def adapter_roles(inputs: Mapping[str, str]) -> tuple[str, ...]:
    """The inputs `adapters-1` to `adapters-N`, in the order of their numbers.

    Raises:
        InvalidRecordError: There is none, or a number is missing.
    """
    found = {role for role in inputs if role.startswith(f"{ROLE}-")}
    roles = tuple(f"{ROLE}-{number}" for number in range(1, len(found) + 1))
    if not found or found != set(roles):
        raise InvalidRecordError(
            "not the adapters of a mixture",
            where="inputs",
            expected=f"{ROLE}-1, {ROLE}-2, … without a gap",
            actual=", ".join(sorted(found)) or "none",
        )
    return roles


def _read(request: StepRequest, role: str, weights: Sequence[Weight]) -> Adapter:
    """The LoRA of the input `role`, of the model with `weights`."""
    try:
        found = Adapter.read(input_folder(request, role))
        if found.kind is not LORA or found.settings["use_dora"]:
            raise InvalidRecordError(
                "this adapter cannot be mixed with others",
                file=CONFIG,
                where="peft_type",
                expected="LORA without use_dora",
                actual=str(found.kind.fixed["peft_type"]),
            )
        if found.base is None or found.base.stored != PLAIN:
            raise InvalidRecordError(
                "nothing says that the adapter was trained on plain weights",
                file="base.json",
                where="stored",
                expected=PLAIN,
                actual="no such file" if found.base is None else found.base.stored,
            )
        found.base.check(weights)
    except InvalidRecordError as error:
        raise error.under(f"inputs.{role}") from None
    return found


def check_alike(adapters: Sequence[Adapter], roles: Sequence[str]) -> None:
    """Refuse adapters of other layers than those of the first.

    Raises:
        InvalidRecordError: One has a layer more, or less.
    """
    wanted = adapters[0].layers.keys()
    for adapter, role in zip(adapters, roles, strict=True):
        other = sorted(wanted ^ adapter.layers.keys())
        if other:
            raise InvalidRecordError(
                "the adapters are not beside the same layers",
                where=f"inputs.{role}",
                expected=f"the layers of {roles[0]}",
                actual=f"{other[0]} is in one of them",
                advice="Give their stages the same target_modules.",
            )


def expert_of(adapter: Adapter) -> Expert:
    """What a mixture must know of a LoRA."""
    rank, alpha = adapter.settings["r"], adapter.settings["lora_alpha"]
    assert isinstance(rank, int)
    assert isinstance(alpha, int)
    return Expert(rank=rank, alpha=alpha, is_stabilised=adapter.settings["use_rslora"] is True)


def first_tensors(said: Gated, adapters: Sequence[Adapter]) -> dict[str, torch.Tensor]:
    """The adapters as they are, and a gating network that counts them alike; by names of the file.

    The layers before the last are drawn, as torch draws a linear layer's weights.
    """
    found: dict[str, torch.Tensor] = {}
    features = (said.hidden_size, *said.widths)
    for number, width in enumerate(said.widths):
        weight = torch.empty(width, features[number])
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        found |= {f"{TRUNK}{number}.weight": weight, f"{TRUNK}{number}.bias": torch.zeros(width)}
    for path in adapters[0].layers:
        parts = [one.layers[path] for one in adapters]
        found |= {
            f"{path}.down": torch.cat([one[DOWN] for one in parts]),
            f"{path}.gate": torch.zeros(len(adapters), features[-1]),
            f"{path}.gate_bias": torch.zeros(len(adapters)),
            f"{path}.up": torch.cat([one[UP] for one in parts], dim=1),
        }
    return found


def state_of(network: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The adapters as they are, and the gating network as `dtype`, by their names in the file."""
    gating = gating_of(network)
    assert gating is not None, "it was attached"
    found: dict[str, torch.Tensor] = {}
    for number, (weight, bias) in enumerate(zip(gating.weights, gating.biases, strict=True)):
        found[f"{TRUNK}{number}.weight"] = weight.detach().to(dtype)
        found[f"{TRUNK}{number}.bias"] = bias.detach().to(dtype)
    for path, layer in gated(network):
        found |= {f"{path}.down": layer.down.detach(), f"{path}.up": layer.up.detach()}
        found[f"{path}.gate"] = layer.gate.detach().to(dtype)
        found[f"{path}.gate_bias"] = layer.gate_bias.detach().to(dtype)
    return found
