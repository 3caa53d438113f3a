"""A Llama's network without its modules: the same operators on the same numbers, and nothing else.

A token is read in a few milliseconds of products; transformers' modules cost as much again. What is
here does what they do in their order (GEN-50): rows stay rows, keys and values lie in one memory
made ahead, rotary tables are made once. Only settings that are written down here are read so
(GEN-51); every other network is asked itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.models.llama import modeling_llama as llama

from kolm_build.core.quantisation_config import LayerGroup
from kolm_build.numerics import portable
from kolm_build.runtime.products import Tensors, product
from kolm_build.runtime.quantised import QuantisedEmbedding, QuantisedLinear
from kolm_build.runtime.room import Room

SIZES = frozenset(
    {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "attention_bias",
        "mlp_bias",
        "tie_word_embeddings",
        "dtype",
    }
)
"""Settings whose values are those of the modules, which are read here."""

SILENT = frozenset(
    {
        "transformers_version",
        "architectures",
        "return_dict",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "problem_type",
        "attention_dropout",
        "initializer_range",
        "use_cache",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "pretraining_tp",
        "_name_or_path",
        "_experts_implementation_internal",
        "_post_init_done",
    }
)
"""Settings that change no number of a network in evaluation mode."""

FIXED: Mapping[str, object] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "is_encoder_decoder": False,
    "output_hidden_states": False,
    "_output_attentions": False,
    "_attn_implementation_internal": "sdpa",
}
"""Settings that must have this value."""

ROTARY: Mapping[str, frozenset[str]] = {
    "default": frozenset({"rope_type", "rope_theta"}),
    "linear": frozenset({"rope_type", "rope_theta", "factor"}),
    "llama3": frozenset(
        {
            "rope_type",
            "rope_theta",
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        }
    ),
}
"""Kinds of rotary positions that do not change with the length of what is read, and settings."""

_TABLE_STEP = 512
"""Positions that rotary tables grow by."""

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a network makes of tokens; the names are those of transformers.

    Attributes:
        logits: [rows, tokens, vocabulary].
        past_key_values: Keys and values of everything read.
    """

    logits: torch.Tensor
    past_key_values: Any


class Decoder:
    """A network by another way; it is called as the network is.

    Args:
        network: A `LlamaForCausalLM` that `is_known`.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.config = network.config
        self._layers = [_Layer.of(layer) for layer in network.model.layers]
        self._embed: Map = network.model.embed_tokens.forward
        self._norm = _Norm.of(network.model.norm)
        self._head = _linear(network.lm_head)
        self._shape = _Shape.of(network)
        self._tables = _Tables(network.model.rotary_emb, self._shape)

    def __call__(
        self,
        input_ids: torch.Tensor,
        *,
        past_key_values: Any = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> Any:
        """What the network makes of `input_ids`, [rows, tokens], after `past_key_values`.

        What has a mask or positions of its own, and arithmetic that is not `portable-1`, is left
        to the network.

        Determinism:
            Bitwise what the network gives, in `portable-1`.
        """
        is_plain = position_ids is None and attention_mask is None and use_cache
        if not is_plain or not _is_readable(past_key_values) or not portable.is_active():
            others = {"position_ids": position_ids, "attention_mask": attention_mask}
            return self.network(
                input_ids=input_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **{name: value for name, value in others.items() if value is not None},
            )
        with torch.inference_mode():
            room = self._room(past_key_values, len(input_ids))
            hidden = self._read(input_ids, room)[:, -logits_to_keep:]
            rows = self._norm(hidden.reshape(-1, hidden.shape[-1]))
            logits = self._head(rows).view(*hidden.shape[:2], -1)
        return Seen(logits=logits, past_key_values=room)

    def _room(self, past: Any, rows: int) -> Room:
        if isinstance(past, Room):
            return past
        shape = self._shape
        room = Room(
            layers=len(self._layers),
            rows=rows,
            heads=shape.key_heads,
            width=shape.width,
            dtype=shape.dtype,
        )
        if past is not None:
            room.fill([(layer.keys, layer.values) for layer in past.layers])
        return room

    def _read(self, ids: torch.Tensor, room: Room) -> torch.Tensor:
        """The hidden states after the last layer, [rows, tokens, hidden size]."""
        rows, tokens = ids.shape
        start = room.length
        turn = self._tables.turn(start, tokens, rows)
        look = _Look(self._shape, rows, tokens, _mask(start, tokens), is_causal=start == 0)
        x = self._embed(ids).reshape(rows * tokens, -1)  # of its own, and changed in place
        places, seen = room.grown(tokens)
        for number, layer in enumerate(self._layers):
            at = 2 * number
            layer.read(x, turn, look, places[at : at + 2], seen[at : at + 2])
        return x.view(rows, tokens, -1)


def is_known(network: Any) -> bool:
    """Whether `network` is exactly one that a `Decoder` stands for."""
    return (
        type(network) is llama.LlamaForCausalLM
        and not network.training
        and {name for name, _ in network.named_children()} == {"model", "lm_head"}
        and _has_known_settings(network.config)
        and all(_has_known_parts(layer) for layer in network.model.layers)
        and type(network.model.norm) is llama.LlamaRMSNorm
        and type(network.model.rotary_emb) is llama.LlamaRotaryEmbedding
        and type(network.model.embed_tokens) in {torch.nn.Embedding, QuantisedEmbedding}
        and _is_linear(network.lm_head)
    )


def _has_known_settings(config: Any) -> bool:
    rotary = config.rope_parameters
    return (
        vars(config).keys() <= SIZES | SILENT | FIXED.keys() | {"rope_parameters"}
        and all(getattr(config, name) == value for name, value in FIXED.items())
        and isinstance(rotary, dict)
        and rotary.keys() == ROTARY.get(str(rotary.get("rope_type")))
    )


_LINEAR = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def _has_known_parts(layer: Any) -> bool:
    return (
        type(layer) is llama.LlamaDecoderLayer
        and type(layer.self_attn) is llama.LlamaAttention
        and type(layer.mlp) is llama.LlamaMLP
        and type(layer.mlp.act_fn) is type(ACT2FN["silu"])
        and type(layer.input_layernorm) is llama.LlamaRMSNorm
        and type(layer.post_attention_layernorm) is llama.LlamaRMSNorm
        and all(
            _is_linear(getattr(getattr(layer, part), name))
            for part, names in _LINEAR.items()
            for name in names
        )
    )


def _is_linear(module: Any) -> bool:
    return type(module) in {torch.nn.Linear, QuantisedLinear}


def _is_readable(past: Any) -> bool:
    return past is None or type(past) in {Room, DynamicCache}


# ---------------------------------------------------------------------------------------- parts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What an attention layer is like; the same in every layer."""

    heads: int
    key_heads: int
    width: int
    scale: float
    dtype: torch.dtype

    @classmethod
    def of(cls, network: Any) -> _Shape:
        config, attention = network.config, network.model.layers[0].self_attn
        return cls(
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            width=attention.head_dim,
            scale=attention.scaling,
            dtype=network.model.norm.weight.dtype,
        )


@dataclass(frozen=True, slots=True)
class _Norm:
    """RMS norm as `LlamaRMSNorm` writes it: 1 / sqrt is one rounding, the fused operator's two."""

    weight: torch.Tensor
    eps: torch.Tensor

    @classmethod
    def of(cls, module: Any) -> _Norm:
        return cls(module.weight.detach()[None], torch.tensor(module.variance_epsilon))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = (wide * wide).mean(-1, keepdim=True).add_(self.eps).rsqrt_()
        return (wide * scale).to(x.dtype).mul_(self.weight)


Turn = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, [rows · tokens, heads · width], the sines of the first half negated."""


class _Tables:
    """Rotary tables for each position, as far as anything was read; made by the network's module.

    Args:
        module: The network's.
        shape: The attention's.
    """

    def __init__(self, module: Any, shape: _Shape) -> None:
        self._module = module
        self._shape = shape
        self._cos = self._sin = torch.empty(0, shape.width, dtype=shape.dtype)

    def turn(self, start: int, tokens: int, rows: int) -> Turn:
        """The tables of positions from `start`, for the heads of q and k side by side."""
        end = start + tokens
        if end > len(self._cos):
            self._make(end + -end % _TABLE_STEP)
        heads = self._shape.heads + self._shape.key_heads
        return self._cos[start:end].repeat(rows, heads), self._sin[start:end].repeat(rows, heads)

    def _make(self, end: int) -> None:
        cos, sin = self._module.forward(self._cos, position_ids=torch.arange(end)[None])
        half = self._shape.width // 2
        self._cos, self._sin = cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)


def _mask(start: int, tokens: int) -> torch.Tensor | None:
    """Which keys each token sees, where neither all nor those of a prompt from its beginning."""
    if start == 0 or tokens == 1:
        return None
    return torch.ones(tokens, start + tokens, dtype=torch.bool).tril(start)


class _Look:
    """How the tokens of one call attend.

    Args:
        shape: The attention's.
        rows: Prompts.
        tokens: Tokens of each.
        mask: Which keys each token sees; None for all, or as `is_causal` says.
        is_causal: Whether nothing was read before them.
    """

    def __init__(
        self,
        shape: _Shape,
        rows: int,
        tokens: int,
        mask: torch.Tensor | None,
        *,
        is_causal: bool,
    ) -> None:
        self.turned = (rows, tokens, shape.heads + shape.key_heads, shape.width)
        self.values = (rows, tokens, shape.key_heads, shape.width)
        self.heads, self.key_heads, self.width = shape.heads, shape.key_heads, shape.width
        self._mask = mask
        self._is_causal = is_causal and tokens > 1
        self._scale = shape.scale
        self._is_grouped = shape.heads != shape.key_heads

    def __call__(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What the heads see, [rows · tokens, heads · width], float32."""
        found = functional.scaled_dot_product_attention(
            q,
            keys,
            values,
            self._mask,
            0.0,
            self._is_causal,
            scale=self._scale,
            enable_gqa=self._is_grouped,
        )
        return found.transpose(1, 2).reshape(-1, self.heads * self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer's norms and products."""

    norm: _Norm
    q: Map
    k: Map
    v: Map
    o: Map
    second_norm: _Norm
    gate: Map
    up: Map
    down: Map

    @classmethod
    def of(cls, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            norm=_Norm.of(layer.input_layernorm),
            q=_linear(attention.q_proj),
            k=_linear(attention.k_proj),
            v=_linear(attention.v_proj),
            o=_linear(attention.o_proj),
            second_norm=_Norm.of(layer.post_attention_layernorm),
            gate=_linear(mlp.gate_proj),
            up=_linear(mlp.up_proj),
            down=_linear(mlp.down_proj),
        )

    def read(
        self,
        x: torch.Tensor,
        turn: Turn,
        look: _Look,
        places: Sequence[torch.Tensor],
        seen: Sequence[torch.Tensor],
    ) -> None:
        """The layer on `x`, [rows · tokens, hidden size], in place; keys and values to `places`.

        Attention is computed in float32 and rounded once, as the portable operator does it; keys
        and values are kept as it needs them.
        """
        n = self.norm(x)
        turned = _turned(torch.cat((self.q(n), self.k(n)), dim=-1), turn, look.width)
        wide = turned.float().view(look.turned)
        places[0].copy_(wide.narrow(2, look.heads, look.key_heads))
        places[1].copy_(self.v(n).view(look.values))
        found = look(wide.narrow(2, 0, look.heads).transpose(1, 2), *seen)
        x.add_(self.o(found.to(x.dtype)))
        n = self.second_norm(x)
        x.add_(self.down(functional.silu(self.gate(n), inplace=True).mul_(self.up(n))))


def _turned(x: torch.Tensor, turn: Turn, width: int) -> torch.Tensor:
    """`x`, [rows · tokens, heads · width], turned by its positions in place.

    The second half of a head comes before the first, with the sign in the sines.
    """
    cos, sin = turn
    swapped = x.view(len(x), -1, width).roll(width // 2, -1).view_as(x)
    return x.mul_(cos).add_(swapped.mul_(sin))


# ------------------------------------------------------------------------------------- products


def _linear(module: Any) -> Map:
    """What `module` computes, without the module."""
    bias = module.bias
    if isinstance(module, QuantisedLinear):
        return _quantised(module.tensors(), module.group, bias)
    weight = module.weight

    def run(x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weight, bias)

    return run


def _quantised(tensors: Tensors, group: LayerGroup, bias: torch.Tensor | None) -> Map:
    """`product` with what it looks up found once, where it is one call."""
    kernels, grid = torch.ops.kolm_portable, group.grid
    if grid.kind != "int" or group.activations:
        return lambda x: product(x, tensors, group, bias)
    codes = tensors["weight"] if "weight" in tensors else tensors["weight_packed"]
    scale, zero_point = tensors["weight_scale"], tensors.get("weight_zero_point")
    run, bits, width = kernels.quantised_linear_int.default, grid.bits, grid.group
    return lambda x: run(x, codes, scale, zero_point, bits, width, bias)
