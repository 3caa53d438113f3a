"""The architectures that a GGUF file may hold: their configuration and their tensors' names.

Llama's query and key rows are interleaved in GGUF, half against half in Hugging Face's layout;
`Architecture.swaps_halves` says so. The tensor list is complete: a file with one tensor more or
less than its metadata says is refused, because a loader would fill the gap with random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._gguf import Gguf

T = TypeVar("T", int, float)

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture.

    Attributes:
        model_type: Hugging Face's name of it.
        model_class: Hugging Face's class.
        swaps_halves: Whether query and key rows are stored interleaved.
        biases: Whether query, key and value have biases.
    """

    model_type: str
    model_class: str
    swaps_halves: bool
    biases: bool


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        model_type="llama", model_class="LlamaForCausalLM", swaps_halves=True, biases=False
    ),
    "qwen2": Architecture(
        model_type="qwen2", model_class="Qwen2ForCausalLM", swaps_halves=False, biases=True
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a GGUF file's metadata says of its model.

    Attributes:
        architecture: Which one.
        layers: Number of layers.
        hidden: Width of the residual stream.
        intermediate: Width of the feed-forward layer.
        heads: Number of query heads.
        kv_heads: Number of key and value heads.
        head: Width of a head.
        vocabulary: Number of tokens.
        context: Longest text in tokens.
        rms_norm_eps: Constant of the norms.
        rope_theta: Base of the rotary angles.
        is_tied: Whether the output uses the embedding.
    """

    architecture: Architecture
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    context: int
    rms_norm_eps: float
    rope_theta: float
    is_tied: bool


def read_sizes(gguf: Gguf, vocabulary: int) -> Sizes:
    """The sizes in the metadata of `gguf`.

    Raises:
        InvalidRecordError: The architecture is not supported, or a size is missing or wrong.
    """
    name = gguf.values.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InvalidRecordError(
            "an architecture that is not supported",
            where="general.architecture",
            expected=" or ".join(ARCHITECTURES),
            actual=repr(name)[:80],
            advice="Import the model from its safetensors folder instead.",
        )
    _check_rope(gguf, name)
    hidden = _positive(gguf, f"{name}.embedding_length", int)
    heads = _positive(gguf, f"{name}.attention.head_count", int)
    head = _positive(gguf, f"{name}.attention.key_length", int, default=hidden // heads)
    return Sizes(
        architecture=ARCHITECTURES[name],
        layers=_positive(gguf, f"{name}.block_count", int),
        hidden=hidden,
        intermediate=_positive(gguf, f"{name}.feed_forward_length", int),
        heads=heads,
        kv_heads=_positive(gguf, f"{name}.attention.head_count_kv", int, default=heads),
        head=head,
        vocabulary=vocabulary,
        context=_positive(gguf, f"{name}.context_length", int),
        rms_norm_eps=_decimal(gguf, f"{name}.attention.layer_norm_rms_epsilon"),
        rope_theta=_decimal(gguf, f"{name}.rope.freq_base", default=10000.0),
        is_tied=HEAD not in gguf.tensors,
    )


def config_value(sizes: Sizes, dtype: str, specials: Mapping[str, int]) -> dict[str, object]:
    """The value of ``config.json``.

    Args:
        sizes: The model's sizes.
        dtype: The weights' dtype as ``config.json`` names it.
        specials: Special token to id.
    """
    kind = sizes.architecture
    own: dict[str, object] = (
        {"use_sliding_window": False}
        if kind.biases
        else {"attention_bias": False, "head_dim": sizes.head, "mlp_bias": False}
    )
    return {
        "architectures": [kind.model_class],
        "attention_dropout": 0.0,
        "dtype": dtype,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": sizes.context,
        "model_type": kind.model_type,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": sizes.rms_norm_eps,
        "rope_parameters": {"rope_theta": sizes.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": sizes.is_tied,
        "use_cache": True,
        "vocab_size": sizes.vocabulary,
        **own,
        **token_ids(specials),
    }


def token_ids(specials: Mapping[str, int]) -> dict[str, int]:
    """The ids as configurations name them: ``eos_token_id`` and so on."""
    return {f"{name}_id": index for name, index in specials.items() if name != "unk_token"}


def tensor_names(sizes: Sizes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of the GGUF file to its Hugging Face name and its shape."""
    table = {
        EMBEDDING: ("model.embed_tokens.weight", (sizes.vocabulary, sizes.hidden)),
        "output_norm.weight": ("model.norm.weight", (sizes.hidden,)),
    }
    if not sizes.is_tied:
        table[HEAD] = ("lm_head.weight", (sizes.vocabulary, sizes.hidden))
    for layer in range(sizes.layers):
        for part, (name, shape) in _layer(sizes).items():
            table[f"blk.{layer}.{part}"] = (f"model.layers.{layer}.{name}", shape)
    return table


def _layer(sizes: Sizes) -> dict[str, tuple[str, tuple[int, ...]]]:
    wide, hidden, queries = sizes.intermediate, sizes.hidden, sizes.heads * sizes.head
    keys = sizes.kv_heads * sizes.head
    table: dict[str, tuple[str, tuple[int, ...]]] = {
        "attn_norm.weight": ("input_layernorm.weight", (hidden,)),
        "attn_q.weight": ("self_attn.q_proj.weight", (queries, hidden)),
        "attn_k.weight": ("self_attn.k_proj.weight", (keys, hidden)),
        "attn_v.weight": ("self_attn.v_proj.weight", (keys, hidden)),
        "attn_output.weight": ("self_attn.o_proj.weight", (hidden, queries)),
        "ffn_norm.weight": ("post_attention_layernorm.weight", (hidden,)),
        "ffn_gate.weight": ("mlp.gate_proj.weight", (wide, hidden)),
        "ffn_up.weight": ("mlp.up_proj.weight", (wide, hidden)),
        "ffn_down.weight": ("mlp.down_proj.weight", (hidden, wide)),
    }
    if sizes.architecture.biases:
        for letter, length in (("q", queries), ("k", keys), ("v", keys)):
            table[f"attn_{letter}.bias"] = (f"self_attn.{letter}_proj.bias", (length,))
    return table


def swapped_heads(sizes: Sizes, name: str) -> int:
    """The number of heads whose rows are interleaved in the GGUF tensor `name`; 0 for none."""
    if not sizes.architecture.swaps_halves:
        return 0
    if name.endswith(".attn_q.weight"):
        return sizes.heads
    return sizes.kv_heads if name.endswith(".attn_k.weight") else 0


def _check_rope(gguf: Gguf, name: str) -> None:
    """Refuse rotary angles that the plain formula does not give."""
    scaling = gguf.values.get(f"{name}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in gguf.tensors:
        raise InvalidRecordError(
            "scaled rotary angles are not supported",
            where=f"{name}.rope.scaling.type",
            actual=str(scaling),
            advice="Import the model from its safetensors folder instead.",
        )


def _positive(gguf: Gguf, key: str, kind: type[T], *, default: T | None = None) -> T:
    value = gguf.values.get(key, default)
    if type(value) is not kind or not 0 < value <= 1 << 30:
        raise InvalidRecordError(
            "a size is missing or out of range",
            where=key,
            expected="a number above 0",
            actual="nothing" if value is None else repr(value)[:80],
        )
    return value


def _decimal(gguf: Gguf, key: str, *, default: float | None = None) -> float:
    """A float32 of the file as its shortest decimal: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(_positive(gguf, key, float, default=default))))
