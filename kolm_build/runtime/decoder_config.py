"""config.json of the models that a `Decoder` reads, strictly (GEN-51, GEN-61, GEN-62).

Llama's form, and Mistral's and Qwen2's, which differ from it in biases and windows alone. A setting
that is not written down here is refused: whoever reads it then asks the network itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

SILENT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Settings that change no number of a network in evaluation mode, or are read elsewhere."""

FIXED: Mapping[str, object] = {
    "is_encoder_decoder": False,
    "output_attentions": False,
    "output_hidden_states": False,
}
"""Settings that must have this value where they are named."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

_SCALED = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
"""Kinds of rotary positions that do not change with the length of what is read, and numbers."""

Number = int | float

LEAST, MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""The range of the normal numbers of binary32, in which positions are computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """How positions turn queries and keys.

    Attributes:
        kind: ``default``, ``linear`` or ``llama3``.
        theta: The base of the wavelengths.
        numbers: The kind's own numbers, by name.
    """

    kind: str
    theta: Number
    numbers: Mapping[str, Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """What a `Decoder` must know of a network.

    Attributes:
        vocabulary: Number of tokens.
        hidden: Size of what a layer hands to the next.
        inner: Size inside the gated layers.
        layers: Number of layers.
        heads: Heads of queries.
        key_heads: Heads of keys and values.
        head_width: Size of a head.
        window: Most tokens of prompt and answer.
        eps: What is added to a mean of squares.
        rotary: The positions.
        biased: Linear layers with a bias, by the last part of their name.
        is_tied: Whether the head is the embedding.
    """

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    window: int
    eps: float
    rotary: Rotary
    biased: frozenset[str]
    is_tied: bool


def read(settings: Mapping[str, object]) -> DecoderConfig:
    """What `settings`, the table in config.json without its quantisation, say.

    Raises:
        InvalidRecordError: Not exactly what a `Decoder` reads.
    """
    fields = Fields({name: one for name, one in settings.items() if name not in SILENT})
    _fixed(fields, FIXED)
    _equal(fields, "hidden_act", "silu")
    hidden, heads = _count(fields, "hidden_size"), _count(fields, "num_attention_heads")
    window = _count(fields, "max_position_embeddings")
    layers = _count(fields, "num_hidden_layers")
    found = DecoderConfig(
        vocabulary=_count(fields, "vocab_size"),
        hidden=hidden,
        inner=_count(fields, "intermediate_size"),
        layers=layers,
        heads=heads,
        key_heads=_count(fields, "num_key_value_heads"),
        head_width=_head_width(fields, hidden, heads),
        window=window,
        eps=fields.take("rms_norm_eps", float),
        rotary=_rotary(fields, settings),
        biased=_biased(fields, window, layers),
        is_tied=fields.flag("tie_word_embeddings", default=False),
    )
    fields.done()
    _check_heads(found)
    return found


def _fixed(fields: Fields, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if fields.has(name):
            _equal(fields, name, value)


def _equal(fields: Fields, name: str, value: object) -> None:
    found = fields.take(name, type(value))
    if found != value:
        raise _other(name, str(value), found)


def _count(fields: Fields, name: str) -> int:
    found = fields.integer(name)
    if found < 1:
        raise _other(name, "at least 1", found)
    return found


def _number(fields: Fields, table: Mapping[str, object], name: str) -> Number:
    """The number above 0 under `name` of `table`, of the type there, in binary32's range."""
    found: Number = fields.take(name, int if type(table.get(name)) is int else float)
    if not LEAST <= found <= MOST:
        raise _other(name, "a number above 0 that binary32 has", found)
    return found


def _head_width(fields: Fields, hidden: int, heads: int) -> int:
    if not fields.has("head_dim") or fields.is_null("head_dim"):
        return hidden // heads
    return _count(fields, "head_dim")


def _check_heads(found: DecoderConfig) -> None:
    if found.hidden % found.heads or found.heads % found.key_heads or found.head_width % 2:
        raise _other("num_attention_heads", "heads that divide evenly", found.heads)


def _other(name: str, expected: str, actual: object) -> InvalidRecordError:
    return InvalidRecordError(
        "a setting that only the network itself follows",
        where=f"config.json: {name}",
        expected=expected,
        actual=repr(actual)[:80],
    )


# ---------------------------------------------------------------------------------- architectures


def _biased(fields: Fields, window: int, layers: int) -> frozenset[str]:
    """Linear layers with a bias; what the architecture alone has is read here."""
    kind = fields.text("model_type")
    if kind == "llama":
        attention = fields.flag("attention_bias", default=False)
        mlp = fields.flag("mlp_bias", default=False)
        return frozenset((ATTENTION if attention else ()) + (MLP if mlp else ()))
    if kind == "mistral":
        _check_sliding(fields, window)
        return frozenset()
    if kind == "qwen2":
        _check_full(fields, layers)
        return frozenset({"q_proj", "k_proj", "v_proj"})
    raise _other("model_type", "llama, mistral or qwen2", kind)


def _check_sliding(fields: Fields, window: int) -> None:
    """A window of attention that never hides a key: GEN-4 refuses longer prompts."""
    sliding = fields.nullable("sliding_window", int)
    if sliding is not None and sliding < window:
        raise _other("sliding_window", f"at least {window}, or null", sliding)


def _check_full(fields: Fields, layers: int) -> None:
    """No layer of a Qwen2 has a window of attention."""
    _fixed(fields, {"use_sliding_window": False})
    for name in ("sliding_window", "max_window_layers"):
        if fields.has(name):
            fields.nullable(name, int)
    if fields.has("layer_types") and not fields.is_null("layer_types"):
        kinds = fields.array("layer_types")
        if len(kinds) != layers or any(one != "full_attention" for one in kinds):
            raise _other("layer_types", f"full_attention, {layers} times", kinds)


# -------------------------------------------------------------------------------------- positions


def _rotary(fields: Fields, settings: Mapping[str, object]) -> Rotary:
    """As transformers 5 writes it, or as releases before did: `rope_theta` and `rope_scaling`."""
    if fields.has("rope_parameters") and not fields.is_null("rope_parameters"):
        table = fields.table("rope_parameters")
        inner = Fields(table)
        return _rotary_of(inner, table, _number(inner, table, "rope_theta"))
    theta = _number(fields, settings, "rope_theta")
    if fields.has("rope_scaling") and not fields.is_null("rope_scaling"):
        table = fields.table("rope_scaling")
        return _rotary_of(Fields(table), table, theta)
    return Rotary(kind="default", theta=theta, numbers={})


def _rotary_of(fields: Fields, table: Mapping[str, object], theta: Number) -> Rotary:
    kind = fields.text("rope_type")
    if kind not in _SCALED:
        raise _other("rope_type", ", ".join(_SCALED), kind)
    numbers = {name: _number(fields, table, name) for name in _SCALED[kind]}
    fields.done()
    return Rotary(kind=kind, theta=theta, numbers=numbers)
