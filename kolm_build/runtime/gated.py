"""X-LoRA: adapters beside a layer, mixed by what the model read without them (MOE-40 to 45).

A network reads every token twice. First without its adapters; what it makes of the token, its last
hidden state, is read by a gating network, which says of each layer how much each adapter counts
(arXiv:2402.07148). Then it reads with them. A token's counts follow from that token
and those before it, so what was read can be kept, and read on from: the keys and values of the
first reading lie behind those of the second, as those of further layers.

Training and use compute with this one module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from kolm_build.core.gated import Expert, Gated
from kolm_build.errors import BuildError, InvalidRecordError
from kolm_build.runtime.mixture import chosen

NAME = "gating"
"""The child of a network that holds its gating network."""

_EXTRAS = ("output_attentions", "output_hidden_states")
"""What nobody asks of the first reading."""


@dataclass(slots=True)
class Seen:
    """What the gates read: of each token the gating network's features; None for no adapters."""

    features: torch.Tensor | None = None


class GatedLinear(nn.Module):
    """A linear layer with frozen adapters beside it, and a gate.

    Args:
        layer: The layer.
        experts: What the adapters are, in their order.
        top_k: How many of them speak of a token.
        seen: What the gate reads.
        down: Their A, one below the other, shape (sum of ranks, inputs).
        gate: Shape (experts, features).
        gate_bias: Shape (experts,).
        up: Their B, side by side, shape (outputs, sum of ranks).
    """

    def __init__(
        self,
        layer: nn.Linear,
        experts: Sequence[Expert],
        top_k: int,
        seen: Seen,
        *,
        down: torch.Tensor,
        gate: torch.Tensor,
        gate_bias: torch.Tensor,
        up: torch.Tensor,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.experts = tuple(experts)
        self.top_k = top_k
        self.seen = seen
        self.down = _frozen(down)
        self.up = _frozen(up)
        self.gate = _frozen(gate)
        self.gate_bias = _frozen(gate_bias)
        self.is_even = False
        """Whether all adapters count alike, as they do before anything is learnt."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The layer's outputs with the adapters' added: float32, rounded once to the layer's dtype.

        Determinism:
            Every token is computed on its own; under `portable-1` bitwise whatever is beside it.
        """
        told: torch.Tensor = self.layer(values)
        if self.seen.features is None:
            return told
        logits = affine(self.seen.features, self.gate, self.gate_bias)
        if self.is_even:
            logits = torch.zeros_like(logits)
        counts = scalings(logits, self.top_k)
        inputs, whole, at = values.float(), told.float(), 0
        for number, one in enumerate(self.experts):
            down = self.down[at : at + one.rank].float()
            up = self.up[:, at : at + one.rank].float()
            inner = (inputs @ down.T) * counts[..., number : number + 1]
            whole, at = whole + (inner @ up.T) * one.scale, at + one.rank
        return whole.to(told.dtype)


def affine(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """W x + b in float32."""
    return nn.functional.linear(values, weight.float(), bias.float())


def scalings(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """How much each adapter counts, of a gate's `logits`, shape (..., adapters).

    Their softmax; of all but the `top_k` greatest 0, and what is left is not scaled up again.
    """
    counts = torch.softmax(logits, dim=-1)
    return counts if top_k == logits.shape[-1] else counts * chosen(logits, top_k)


class Gating(nn.Module):
    """What all gates of a network share: the layers before the last, and what they saw.

    Args:
        seen: What the gates read.
        layers: Weight and bias of each layer.
    """

    def __init__(self, seen: Seen, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        self.seen = seen
        self.weights = nn.ParameterList([_frozen(weight) for weight, _ in layers])
        self.biases = nn.ParameterList([_frozen(bias) for _, bias in layers])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The features that gates read, of a network's last hidden states; float32."""
        features = hidden.float()
        for weight, bias in zip(self.weights, self.biases, strict=True):
            features = torch.relu(affine(features, weight, bias))
        return features

    def before(
        self, reader: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read without the adapters, before `reader`, the network without its head, is called."""
        cache = kwargs.get("past_key_values")
        if cache is None and _is_cached(reader, kwargs):
            cache = DynamicCache(config=reader.config)
        first = {name: one for name, one in kwargs.items() if name not in _EXTRAS}
        first["past_key_values"] = None if cache is None else _first_reading(cache, reader.config)
        with torch.no_grad():
            hidden = reader.forward(*args, **first).last_hidden_state
        self.seen.features = self(hidden)
        return args, {**kwargs, "past_key_values": cache}

    def after(self, _reader: Any, _args: Any, _output: Any) -> None:
        """Forget what was seen."""
        self.seen.features = None


def _is_cached(reader: Any, kwargs: dict[str, Any]) -> bool:
    asked = kwargs.get("use_cache")
    return bool(reader.config.use_cache if asked is None else asked)


def _first_reading(cache: Any, config: Any) -> Cache:
    """The keys and values of the first reading, which lie in `cache` behind those of the second.

    Raises:
        BuildError: What is in `cache` was read without them.
    """
    count = config.get_text_config().num_hidden_layers
    if len(cache.layers) in (0, count) and cache.get_seq_length() == 0:
        cache.layers[:] = [one for _ in range(2) for one in DynamicCache(config=config).layers]
    if len(cache.layers) != 2 * count:
        raise BuildError(
            "keys and values that were read without the adapters",
            expected=f"{2 * count} layers",
            actual=str(len(cache.layers)),
        )
    return Cache(layers=cache.layers[count:])


def gated(network: nn.Module) -> list[tuple[str, GatedLinear]]:
    """The layers of `network` with a gate, by their paths."""
    return [(path, one) for path, one in network.named_modules() if isinstance(one, GatedLinear)]


def gating_of(network: nn.Module) -> Gating | None:
    """The gating network of `network`, if it has one."""
    found = getattr(network, NAME, None)
    return found if isinstance(found, Gating) else None


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def attach_gated(network: Any, said: Gated, tensors: Mapping[str, torch.Tensor]) -> Gating:
    """Put the adapters and gates `tensors`, by their names in the file, beside `network`'s layers.

    They stay as they are stored, and take no gradients.

    Raises:
        InvalidRecordError: A path is no plain linear layer.
    """
    seen = Seen()
    count = len(said.widths)
    made = Gating(
        seen,
        [(tensors[f"{NAME}.{at}.weight"], tensors[f"{NAME}.{at}.bias"]) for at in range(count)],
    )
    for name in sorted(tensors):
        path, _, part = name.rpartition(".")
        if part == "gate":
            network.set_submodule(path, _layer(network, path, said, seen, tensors))
    network.add_module(NAME, made)
    network.base_model.register_forward_pre_hook(made.before, with_kwargs=True)
    network.base_model.register_forward_hook(made.after, always_call=True)
    return made


def _layer(
    network: Any, path: str, said: Gated, seen: Seen, tensors: Mapping[str, torch.Tensor]
) -> GatedLinear:
    layer = network.get_submodule(path)
    if type(layer) is not nn.Linear:
        raise InvalidRecordError("an adapter beside what is no plain linear layer", where=path)
    return GatedLinear(
        layer,
        said.experts,
        said.top_k,
        seen,
        down=tensors[f"{path}.down"],
        gate=tensors[f"{path}.gate"],
        gate_bias=tensors[f"{path}.gate_bias"],
        up=tensors[f"{path}.up"],
    )
