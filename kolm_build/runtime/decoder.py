"""A network without its modules: the same operators on the same numbers, and nothing else.

A token is read in a few milliseconds of products; transformers' modules cost as much again, and
importing them costs seconds. What is here does what they do in their order (GEN-50): rows stay
rows, keys and values lie in one memory made ahead, rotary tables are made once. Only Llama and its
kin are read so, and only where config.json says nothing that is not written down (GEN-51); every
other network is asked itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from kolm_build.core.quantisation_config import LayerGroup
from kolm_build.runtime.decoder_config import DecoderConfig
from kolm_build.runtime.products import Tensors, product
from kolm_build.runtime.room import RaggedRoom, Room
from kolm_build.runtime.rotary import Tables, Turn

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The weights of a network.

    Attributes:
        embed: Token ids to their rows, of their own, in the network's dtype.
        products: What each linear layer computes, by its name.
        norms: The weight of each norm, by its name.
        dtype: What the network computes in.
    """

    embed: Map
    products: Mapping[str, Map]
    norms: Mapping[str, torch.Tensor]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a network makes of tokens; the names are those of transformers.

    Attributes:
        logits: [rows, tokens, vocabulary].
        past_key_values: Keys and values of everything read.
    """

    logits: torch.Tensor
    past_key_values: Room | RaggedRoom


class Decoder:
    """A network by another way; it is called as the network is, inside `portable-1` alone.

    Args:
        config: What the network is.
        parts: Its weights.
    """

    def __init__(self, config: DecoderConfig, parts: Parts) -> None:
        self.config = config
        self.dtype = parts.dtype
        eps = torch.tensor(config.eps)
        self._layers = [_Layer.of(number, parts, eps) for number in range(config.layers)]
        self._embed = parts.embed
        self._norm = _norm("model.norm", parts, eps)
        self._head = parts.products["lm_head"]
        self._tables = Tables(config, parts.dtype)

    def __call__(
        self,
        input_ids: torch.Tensor,
        *,
        past_key_values: Room | RaggedRoom | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> Seen:
        """What the network makes of `input_ids`, [rows, tokens], after `past_key_values`.

        Args:
            input_ids: The tokens.
            past_key_values: What was read before; it is used up.
            use_cache: As networks are called; what was read is kept either way.
            logits_to_keep: Logits of so many tokens at the end; 0 for all.

        Determinism:
            Bitwise what the network gives, in `portable-1`.
        """
        del use_cache
        rows = len(input_ids)
        with torch.inference_mode():
            room = past_key_values or Room(self.config, rows, self.dtype)
            hidden = self._read(input_ids, room)[:, -logits_to_keep:]
            flat = self._norm(hidden.reshape(-1, hidden.shape[-1]))
            logits = self._head(flat).view(*hidden.shape[:2], -1)
        return Seen(logits=logits, past_key_values=room)

    def _read(self, ids: torch.Tensor, room: Room | RaggedRoom) -> torch.Tensor:
        """The hidden states after the last layer, [rows, tokens, hidden size]."""
        rows, tokens = ids.shape
        room.begin(tokens)
        turn = room.turn(self._tables, tokens)
        look = _Look(self.config, rows, tokens, room)
        x = self._embed(ids).reshape(rows * tokens, -1)  # of its own, and changed in place
        for layer in self._layers:
            layer.read(x, turn, look)
        return x.view(rows, tokens, -1)


# ---------------------------------------------------------------------------------------- parts


@dataclass(frozen=True, slots=True)
class _Norm:
    """RMS norm as the modules write it: 1 / sqrt is one rounding, the fused operator's two."""

    weight: torch.Tensor
    eps: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = (wide * wide).mean(-1, keepdim=True).add_(self.eps).rsqrt_()
        return (wide * scale).to(x.dtype).mul_(self.weight)


def _norm(name: str, parts: Parts, eps: torch.Tensor) -> _Norm:
    return _Norm(parts.norms[name][None], eps)


class _Look:
    """How the tokens of one call attend.

    Args:
        config: The network's.
        rows: Prompts.
        tokens: Tokens of each.
        room: Where keys and values are; the tokens are begun.
    """

    def __init__(
        self, config: DecoderConfig, rows: int, tokens: int, room: Room | RaggedRoom
    ) -> None:
        self._turned = (rows, tokens, config.heads + config.key_heads, config.head_width)
        self._values = (rows, tokens, config.key_heads, config.head_width)
        self._heads, self._key_heads = config.heads, config.key_heads
        self._width = config.heads * config.head_width
        self.head_width = config.head_width
        self._room = room
        self._mask = room.mask(tokens)
        self._is_causal = self._mask is None and tokens > 1
        self._scale = config.head_width**-0.5
        self._is_grouped = config.heads != config.key_heads

    def __call__(self, layer: int, turned: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What the heads see, [rows · tokens, heads · width], float32.

        Attention is computed in float32 and rounded once, as the portable operator does it; keys
        and values are kept as it needs them.

        Args:
            layer: The layer's number.
            turned: Queries and keys, [rows · tokens, heads · width], turned by their positions.
            values: Values, the same.
        """
        wide = turned.float().view(self._turned)
        keys, seen = self._room.put(
            layer, wide.narrow(2, self._heads, self._key_heads), values.view(self._values)
        )
        found = functional.scaled_dot_product_attention(
            wide.narrow(2, 0, self._heads).transpose(1, 2),
            keys,
            seen,
            self._mask,
            0.0,
            self._is_causal,
            scale=self._scale,
            enable_gqa=self._is_grouped,
        )
        return found.transpose(1, 2).reshape(-1, self._width)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer's norms and products."""

    number: int
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
    def of(cls, number: int, parts: Parts, eps: torch.Tensor) -> _Layer:
        name = f"model.layers.{number}"
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        return cls(
            number=number,
            norm=_norm(f"{name}.input_layernorm", parts, eps),
            q=parts.products[f"{attention}.q_proj"],
            k=parts.products[f"{attention}.k_proj"],
            v=parts.products[f"{attention}.v_proj"],
            o=parts.products[f"{attention}.o_proj"],
            second_norm=_norm(f"{name}.post_attention_layernorm", parts, eps),
            gate=parts.products[f"{mlp}.gate_proj"],
            up=parts.products[f"{mlp}.up_proj"],
            down=parts.products[f"{mlp}.down_proj"],
        )

    def read(self, x: torch.Tensor, turn: Turn, look: _Look) -> None:
        """The layer on `x`, [rows · tokens, hidden size], in place."""
        n = self.norm(x)
        turned = _turned(torch.cat((self.q(n), self.k(n)), dim=-1), turn, look.head_width)
        found = look(self.number, turned, self.v(n))
        x.add_(self.o(found.to(x.dtype)))
        n = self.second_norm(x)
        x.add_(self.down(functional.silu(self.gate(n), inplace=True).mul_(self.up(n))))


def _turned(x: torch.Tensor, turn: Turn, width: int) -> torch.Tensor:
    """`x`, [rows · tokens, heads · width], turned by its positions in place.

    The second half of a head comes before the first, with the sign in the sines.
    """
    cos, sin = turn
    swapped = x.view(x.shape[0], -1, width).roll(width // 2, -1).view_as(x)
    return x.mul_(cos).add_(swapped.mul_(sin))


# ------------------------------------------------------------------------------------- products


def plain_product(weight: torch.Tensor, bias: torch.Tensor | None) -> Map:
    """What a linear layer of floating point computes."""

    def run(x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weight, bias)

    return run


def quantised_product(tensors: Tensors, group: LayerGroup, bias: torch.Tensor | None) -> Map:
    """`product` with what it looks up found once, where it is one call."""
    kernels, grid = torch.ops.kolm_portable, group.grid
    if grid.kind != "int" or group.activations:
        return lambda x: product(x, tensors, group, bias)
    codes = tensors["weight"] if "weight" in tensors else tensors["weight_packed"]
    scale, zero_point = tensors["weight_scale"], tensors.get("weight_zero_point")
    run, bits, width = kernels.quantised_linear_int.default, grid.bits, grid.group
    return lambda x: run(x, codes, scale, zero_point, bits, width, bias)
