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

from kolm_build.core.attached_files import VIRTUAL, is_beside, reads_twice
from kolm_build.core.config_keys import QUANTISED
from kolm_build.core.fields import Fields
from kolm_build.core.safetensors import DTYPE_BYTES, TensorEntry
from kolm_build.core.weight_names import EMBEDDING, HEAD, NORM, Shape
from kolm_build.errors import InvalidRecordError

_FLOATS = ("BF16", "F16", "F32", "F64")

Config = Mapping[str, object]
Tensors = Mapping[str, TensorEntry]


def shapes(config: Config, tensors: Tensors) -> Mapping[str, Shape]:
    """The shape of every parameter, by name: codes unpacked, scales and the like left out.

    Args:
        config: The configuration.
        tensors: What is stored, by name.

    Raises:
        InvalidRecordError: The weights are quantised in a form that is not known, or a layer that
            is said to be quantised has no codes.
    """
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if config.get(QUANTISED) is None:
        return found
    from kolm_build.core.packed_shapes import unpacked  # and the formats with it: 10 ms

    return unpacked(found, config[QUANTISED])


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
        parameter_bytes: Bytes of all weights, as stored.
        again_bytes: Bytes of weights that are read a second time for each token.
        virtual_tokens: Tokens whose keys and values are there before any is read.
    """

    body: int
    head: int
    layers: int
    query_width: int
    cache_width: int
    element_bytes: int
    parameter_bytes: int
    again_bytes: int = 0
    virtual_tokens: int = 0

    @classmethod
    def of(cls, config: Config, tensors: Tensors) -> Self:
        """The sizes of a model of the Llama family, quantised or not.

        One that reads each token twice (MOE-47) has its linear layers and its attention twice.

        Raises:
            InvalidRecordError: The configuration lacks a size, or its weights are quantised in a
                form that is not known.
        """
        weights = shapes(config, tensors)
        fields = Fields({name: value for name, value in config.items() if value is not None})
        heads = fields.integer("num_attention_heads")
        kv_heads = fields.integer("num_key_value_heads", default=heads)
        width = fields.integer("head_dim", default=fields.integer("hidden_size") // max(heads, 1))
        linear = {
            name: prod(shape)
            for name, shape in weights.items()
            if len(shape) == 2 and name not in (EMBEDDING, HEAD, VIRTUAL)
        }
        again = [name for name in linear if reads_twice(weights) and not is_beside(name)]
        return cls(
            body=sum(linear.values()) + sum(linear[name] for name in again),
            head=prod(weights.get(HEAD, weights[EMBEDDING])),
            layers=fields.integer("num_hidden_layers") * (2 if again else 1),
            query_width=heads * width,
            cache_width=2 * kv_heads * width,
            element_bytes=_element_bytes(tensors),
            parameter_bytes=sum(tensor.end - tensor.begin for tensor in tensors.values()),
            again_bytes=sum(tensors[name].end - tensors[name].begin for name in again),
            virtual_tokens=weights[VIRTUAL][0] if VIRTUAL in weights else 0,
        )

    def flops(self, prompt_tokens: int, output_tokens: int) -> int:
        """Operations of one request: every token but the last is read, with all before it."""
        read = prompt_tokens + output_tokens - 1
        linear = 2 * self.body * read + 2 * self.head * output_tokens
        pairs = read * (read + 1) + 2 * self.virtual_tokens * read
        return linear + 2 * self.layers * self.query_width * pairs

    def bytes_moved(self, prompt_tokens: int, output_tokens: int) -> int:
        """Bytes of one request: all weights for each token said, and the key-value cache."""
        read = prompt_tokens + output_tokens - 1
        cached = read * (read + 1) // 2 - prompt_tokens * (prompt_tokens + 1) // 2
        cached += self.virtual_tokens * output_tokens
        weights = self.parameter_bytes + self.again_bytes
        return weights * output_tokens + self.cache_row_bytes * (read + cached)

    @property
    def cache_row_bytes(self) -> int:
        """Bytes of a token's keys and values in all layers."""
        return self.layers * self.cache_width * self.element_bytes


def _element_bytes(tensors: Tensors) -> int:
    """The bytes of what the model computes with: of its head, and of its norm if that is codes."""
    head = tensors.get(HEAD) or tensors.get(EMBEDDING)
    if head is None or head.dtype not in _FLOATS:
        head = tensors.get(NORM)
    if head is None:
        raise InvalidRecordError("nothing says what the model computes in", where=NORM)
    return DTYPE_BYTES[head.dtype]
