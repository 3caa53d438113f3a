"""What a model costs to run: operations and bytes of a request (spec/evaluation.md).

Counted from the configuration and the tensors' shapes alone. The verifier counts so what the step
`evaluate` counted from the network, and a build counts so before there is one. Standard library
only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

from kolm_build.core.fields import Fields
from kolm_build.core.safetensors import DTYPE_BYTES, TensorEntry

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

Config = Mapping[str, object]
Tensors = Mapping[str, TensorEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the cost of a request follows from.

    Attributes:
        body: Weights of the linear layers, without the output head.
        head: Weights of the output head.
        layers: Number of attention layers.
        query_width: Width of all queries of a layer together.
        cache_width: Width of all keys and values of a layer together.
        element_bytes: Bytes of an element of the key-value cache.
        parameter_bytes: Bytes of all weights.
    """

    body: int
    head: int
    layers: int
    query_width: int
    cache_width: int
    element_bytes: int
    parameter_bytes: int

    @classmethod
    def of(cls, config: Config, tensors: Tensors) -> Self:
        """The sizes of a model of the Llama family.

        Raises:
            InvalidRecordError: The configuration lacks a size.
        """
        fields = Fields({name: value for name, value in config.items() if value is not None})
        heads = fields.integer("num_attention_heads")
        kv_heads = fields.integer("num_key_value_heads", default=heads)
        width = fields.integer("head_dim", default=fields.integer("hidden_size") // max(heads, 1))
        head = tensors.get(HEAD, tensors[EMBEDDING])
        return cls(
            body=sum(
                prod(tensor.shape)
                for name, tensor in tensors.items()
                if len(tensor.shape) == 2 and name not in (EMBEDDING, HEAD)
            ),
            head=prod(head.shape),
            layers=fields.integer("num_hidden_layers"),
            query_width=heads * width,
            cache_width=2 * kv_heads * width,
            element_bytes=DTYPE_BYTES[head.dtype],
            parameter_bytes=sum(tensor.end - tensor.begin for tensor in tensors.values()),
        )

    def flops(self, prompt_tokens: int, output_tokens: int) -> int:
        """Operations of one request: every token but the last is read, with all before it."""
        read = prompt_tokens + output_tokens - 1
        linear = 2 * self.body * read + 2 * self.head * output_tokens
        return linear + 2 * self.layers * self.query_width * read * (read + 1)

    def bytes_moved(self, prompt_tokens: int, output_tokens: int) -> int:
        """Bytes of one request: all weights for each token said, and the key-value cache."""
        read = prompt_tokens + output_tokens - 1
        cached = read * (read + 1) // 2 - prompt_tokens * (prompt_tokens + 1) // 2
        return self.parameter_bytes * output_tokens + self.cache_row_bytes * (read + cached)

    @property
    def cache_row_bytes(self) -> int:
        """Bytes of a token's keys and values in all layers."""
        return self.layers * self.cache_width * self.element_bytes
