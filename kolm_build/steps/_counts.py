"""What a request costs, counted from the architecture and not by a clock (spec/evaluation.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes of a network that operations and bytes follow from.

    Attributes:
        parameters: Number of weights, tied ones once.
        parameter_bytes: Their number of bytes.
        body: Weights of the linear layers, without the output head.
        head: Weights of the output head.
        layers: Number of attention layers.
        query_width: Width of all queries of a layer together.
        cache_width: Width of all keys and values of a layer together.
        element_bytes: Bytes of an element of the key-value cache.
    """

    parameters: int
    parameter_bytes: int
    body: int
    head: int
    layers: int
    query_width: int
    cache_width: int
    element_bytes: int

    @classmethod
    def of(cls, network: Any) -> Self:
        """The sizes of the transformers network `network`."""
        weights: list[torch.Tensor] = list(network.parameters())
        config, head = network.config.get_text_config(), network.get_output_embeddings()
        heads = config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(
            parameters=sum(weight.numel() for weight in weights),
            parameter_bytes=sum(weight.nbytes for weight in weights),
            body=sum(
                module.weight.numel()
                for module in network.modules()
                if isinstance(module, torch.nn.Linear) and module is not head
            ),
            head=head.weight.numel(),
            layers=config.num_hidden_layers,
            query_width=heads * head_width,
            cache_width=2 * kv_heads * head_width,
            element_bytes=head.weight.element_size(),
        )

    def flops(self, prompt_tokens: int, output_tokens: int) -> int:
        """Operations of reading a prompt and saying an answer; a multiply-add is two."""
        tokens = prompt_tokens + output_tokens - 1  # the last token said is never read
        pairs = tokens * (tokens + 1) // 2
        return (
            2 * self.body * tokens
            + 2 * self.head * output_tokens
            + 4 * self.layers * self.query_width * pairs
        )

    def bytes_moved(self, prompt_tokens: int, output_tokens: int) -> int:
        """Bytes read and written: the weights once a pass, and the key-value cache."""
        tokens = prompt_tokens + output_tokens - 1
        row = self.layers * self.cache_width * self.element_bytes
        read = sum(range(prompt_tokens + 1, tokens + 1))
        return self.parameter_bytes * output_tokens + row * (tokens + read)


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
