"""The model's folder in an artifact: what may be in it, and what it costs to run (spec/verify.md).

Operations and bytes of a request are counted again, from the configuration and the tensors'
shapes alone, by the formula of spec/evaluation.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

from kolm_build.attest.evidence import Claims, about, same
from kolm_build.core.fields import Fields
from kolm_build.core.manifest import Manifest
from kolm_build.core.safetensors import (
    DTYPE_BYTES,
    PREFIX_BYTES,
    TensorEntry,
    header_length,
    parse_header,
)
from kolm_build.errors import InvalidRecordError

FOLDER = "model/"
CONFIG, TOKENIZER_CONFIG = "model/config.json", "model/tokenizer_config.json"
WEIGHTS_SUFFIX = ".safetensors"

COUNTED = "FLOPs and bytes of a request: from the configuration and the tensors' shapes"

_SUFFIXES = (".json", WEIGHTS_SUFFIX, ".jinja", ".txt", ".md", ".model")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SUMMARY = "eval/summary.json"

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
    def of(cls, config: Mapping[str, object], tensors: Tensors) -> Self:
        """The sizes of a model of the Llama family.

        Raises:
            InvalidRecordError: The configuration lacks a size.
        """
        fields = Fields({name: value for name, value in config.items() if value is not None})
        heads = fields.integer("num_attention_heads")
        kv_heads = fields.integer("num_key_value_heads", default=heads)
        width = fields.integer("head_dim", default=fields.integer("hidden_size") // max(heads, 1))
        head = tensors.get(_HEAD, tensors[_EMBEDDING])
        outside = {_EMBEDDING, _HEAD}
        return cls(
            body=sum(
                prod(tensor.shape)
                for name, tensor in tensors.items()
                if len(tensor.shape) == 2 and name not in outside
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
        row = self.layers * self.cache_width * self.element_bytes
        return self.parameter_bytes * output_tokens + row * (read + cached)


def check_model(heads: Mapping[str, bytes], manifest: Manifest, claims: Claims) -> bool:
    """Whether the cost of a request could be counted again; everything else is checked.

    Args:
        heads: The configurations, and the first bytes of each safetensors file.
        manifest: What the artifact claims; its sizes are the files' sizes.
        claims: What the evaluation says of the model.

    Raises:
        EvidenceError: A file is not one that a model needs, runs code, or is malformed; or the
            evaluation's figures are not this model's.
    """
    config = _config(heads, CONFIG)
    if TOKENIZER_CONFIG in heads:
        _config(heads, TOKENIZER_CONFIG)
    tensors = _tensors(heads, manifest)
    with about(_SUMMARY):
        summary = claims.summary
        same("parameters", summary.parameters, sum(prod(each.shape) for each in tensors.values()))
        same("weight_bytes", summary.weight_bytes, _weight_bytes(manifest))
        if _EMBEDDING not in tensors:
            return False
        sizes = Sizes.of(config, tensors)
        flops = _mean(sizes.flops(*one) for one in claims.requests)
        same("flops_per_request", summary.flops_per_request, flops)
        moved = _mean(sizes.bytes_moved(*one) for one in claims.requests)
        same("bytes_per_request", summary.bytes_per_request, moved)
    return True


def _tensors(heads: Mapping[str, bytes], manifest: Manifest) -> Tensors:
    """The model's tensors by name, from every safetensors file's header."""
    found: dict[str, TensorEntry] = {}
    for member in manifest.members:
        if not member.path.startswith(FOLDER):
            continue
        with about(member.path):
            if not member.path.endswith(_SUFFIXES):
                raise InvalidRecordError(
                    "not a file that a model may hold", expected=" ".join(_SUFFIXES)
                )
            if member.path.endswith(WEIGHTS_SUFFIX):
                for tensor in _header(heads[member.path], member.size):
                    if found.setdefault(tensor.name, tensor) is not tensor:
                        raise InvalidRecordError("a tensor in two files", where=tensor.name)
    return found


def _weight_bytes(manifest: Manifest) -> int:
    """The size of the weights as shipped: of all their files."""
    paths = (each for each in manifest.members if each.path.startswith(FOLDER))
    return sum(each.size for each in paths if each.path.endswith(WEIGHTS_SUFFIX))


def _header(head: bytes, size: int) -> tuple[TensorEntry, ...]:
    end = PREFIX_BYTES + header_length(head[:PREFIX_BYTES], size)
    return parse_header(head[PREFIX_BYTES:end], size).tensors


def _config(heads: Mapping[str, bytes], path: str) -> Mapping[str, object]:
    """The configuration at `path`: a JSON object that names no code to run."""
    with about(path):
        if path not in heads:
            raise InvalidRecordError("the model has no configuration")
        try:
            value = json.loads(heads[path])
        except (ValueError, RecursionError) as error:
            raise InvalidRecordError("not JSON", actual=str(error)[:80]) from None
        if not isinstance(value, dict) or "auto_map" in value:
            raise InvalidRecordError("not an object, or it names code to run", where="auto_map")
    return value


def _mean(figures: Iterable[int]) -> int:
    """The mean, rounded up."""
    counted = list(figures)
    return -(-sum(counted) // len(counted))
