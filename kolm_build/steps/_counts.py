"""What a request costs, counted from the architecture and not by a clock (spec/evaluation.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from kolm_build.runtime.gated import gated, gating_of
from kolm_build.runtime.mixture import mixtures
from kolm_build.runtime.quantised import QuantisedLinear, quantised_modules
from kolm_build.runtime.virtual import virtual_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes of a network that operations and bytes follow from.

    Attributes:
        parameters: Number of weights, tied ones once.
        parameter_bytes: Their number of bytes.
        again_bytes: Bytes of weights that are read a second time for each token.
        body: Weights of the linear layers and of what is beside them, without the output head.
        head: Weights of the output head.
        layers: Number of attention layers.
        query_width: Width of all queries of a layer together.
        cache_width: Width of all keys and values of a layer together.
        element_bytes: Bytes of an element of the key-value cache.
        virtual_tokens: Tokens whose keys and values are there before any is read.
    """

    parameters: int
    parameter_bytes: int
    body: int
    head: int
    layers: int
    query_width: int
    cache_width: int
    element_bytes: int
    again_bytes: int = 0
    virtual_tokens: int = 0

    @classmethod
    def of(cls, network: Any) -> Self:
        """The sizes of the transformers network `network`, quantised or not.

        One that reads each token twice (MOE-47) has its linear layers and its attention twice.
        """
        config, head = network.config.get_text_config(), network.get_output_embeddings()
        heads = config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        plain = list(network.parameters())
        linear = [
            module
            for module in network.modules()
            if isinstance(module, torch.nn.Linear | QuantisedLinear) and module is not head
        ]
        again = linear if gating_of(network) is not None else []
        return cls(
            parameters=sum(weight.numel() for weight in plain) + _quantised_weights(network),
            parameter_bytes=sum(_distinct_bytes(network)),
            body=sum(map(_weights_of, (*linear, *again))) + _beside(network),
            head=_weights_of(head),
            layers=config.num_hidden_layers * (2 if again else 1),
            query_width=heads * head_width,
            cache_width=2 * kv_heads * head_width,
            element_bytes=_computed(head, plain).element_size(),
            again_bytes=sum(module.weight.nbytes for module in again),
            virtual_tokens=virtual_tokens(network),
        )

    def flops(self, prompt_tokens: int, output_tokens: int) -> int:
        """Operations of reading a prompt and saying an answer; a multiply-add is two."""
        tokens = prompt_tokens + output_tokens - 1  # the last token said is never read
        pairs = tokens * (tokens + 1) // 2 + self.virtual_tokens * tokens
        return (
            2 * self.body * tokens
            + 2 * self.head * output_tokens
            + 4 * self.layers * self.query_width * pairs
        )

    def bytes_moved(self, prompt_tokens: int, output_tokens: int) -> int:
        """Bytes read and written: the weights once a pass, and the key-value cache."""
        tokens = prompt_tokens + output_tokens - 1
        row = self.layers * self.cache_width * self.element_bytes
        read = sum(range(prompt_tokens + 1, tokens + 1)) + self.virtual_tokens * output_tokens
        weights = self.parameter_bytes + self.again_bytes
        return weights * output_tokens + row * (tokens + read)


def _weights_of(layer: torch.nn.Linear | QuantisedLinear) -> int:
    return layer.in_features * layer.out_features


def _beside(network: Any) -> int:
    """The weights of experts and routers: all of them are multiplied by, whoever speaks."""
    mixed = [part for _, one in mixtures(network) for part in (one.down, one.router, one.up)]
    mixed += [part for _, one in gated(network) for part in (one.down, one.gate, one.up)]
    gating = gating_of(network)
    mixed += [] if gating is None else list(gating.weights)
    return sum(matrix.numel() for matrix in mixed)


def _quantised_weights(network: Any) -> int:
    """The weights that are codes; codes that two layers share once."""
    found = {module.codes().data_ptr(): module.elements for module in quantised_modules(network)}
    return sum(found.values())


def _distinct_bytes(network: Any) -> Iterable[int]:
    """The bytes of every tensor of the model's file: scales and the like are read too."""
    tensors = list(network.parameters())
    for module in quantised_modules(network):
        tensors += module.tensors().values()
    return {tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values()


def _computed(head: Any, plain: list[torch.Tensor]) -> torch.Tensor:
    """A tensor of the dtype that keys and values have."""
    return plain[0] if isinstance(head, QuantisedLinear) else head.weight


def mean_counts(
    architecture: Architecture, requests: Iterable[tuple[int, int]]
) -> Mapping[str, int]:
    """`flops_per_request` and `bytes_per_request`, rounded up.

    Args:
        architecture: The network's sizes.
        requests: Prompt and output tokens of each request; at least one.
    """
    counted = [(architecture.flops(*one), architecture.bytes_moved(*one)) for one in requests]
    flops, moved = (sum(column) for column in zip(*counted, strict=True))
    return {
        "flops_per_request": -(-flops // len(counted)),
        "bytes_per_request": -(-moved // len(counted)),
    }
