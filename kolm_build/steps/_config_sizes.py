"""A model folder's ``config.json`` as the sizes of an architecture (EXPORT-11).

What a GGUF file of the architecture cannot say is refused by its name, so that no reader of the
file computes something else.
"""

from __future__ import annotations

from collections.abc import Mapping

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._architectures import ARCHITECTURES, Architecture, Sizes
from kolm_build.steps._gguf_writer import Entry
from kolm_build.steps._model_tree import CONFIG, Table

_MUST: Mapping[str, tuple[object, ...]] = {
    "attention_bias": (False,),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "use_sliding_window": (False,),
}
"""Settings that change what is computed, with the values that GGUF's architectures have."""

_MAX = 1 << 30


def sizes_of(config: Table) -> Sizes:
    """The sizes that `config` says.

    Raises:
        InvalidRecordError: The architecture is not exported, or computes what GGUF cannot say.
    """
    try:
        return _sizes(config)
    except InvalidRecordError as error:
        raise error.in_file(CONFIG) from None


def size_entries(sizes: Sizes) -> dict[str, Entry]:
    """The metadata of `sizes`, under the architecture's name."""
    name = gguf_name(sizes)
    return {
        f"{name}.block_count": sizes.layers,
        f"{name}.context_length": sizes.context,
        f"{name}.embedding_length": sizes.hidden,
        f"{name}.feed_forward_length": sizes.intermediate,
        f"{name}.attention.head_count": sizes.heads,
        f"{name}.attention.head_count_kv": sizes.kv_heads,
        f"{name}.attention.key_length": sizes.head,
        f"{name}.attention.value_length": sizes.head,
        f"{name}.attention.layer_norm_rms_epsilon": sizes.rms_norm_eps,
        f"{name}.rope.dimension_count": sizes.head,
        f"{name}.rope.freq_base": sizes.rope_theta,
        f"{name}.vocab_size": sizes.vocabulary,
    }


def gguf_name(sizes: Sizes) -> str:
    """GGUF's name of the architecture."""
    return next(name for name, one in ARCHITECTURES.items() if one == sizes.architecture)


def _sizes(config: Table) -> Sizes:
    architecture = _architecture(config)
    for name, allowed in _MUST.items():
        if config.get(name) not in (None, *allowed):
            raise InvalidRecordError(
                "a setting that a GGUF file of this architecture cannot say",
                where=name,
                expected=" or ".join(map(repr, allowed)),
                actual=repr(config[name])[:80],
            )
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    return Sizes(
        architecture=architecture,
        layers=_count(config, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_count(config, "intermediate_size"),
        heads=heads,
        kv_heads=_count(config, "num_key_value_heads", heads),
        head=_count(config, "head_dim", hidden // heads),
        vocabulary=_count(config, "vocab_size"),
        context=_count(config, "max_position_embeddings"),
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(config),
        is_tied=config.get("tie_word_embeddings") is True,
    )


def _architecture(config: Table) -> Architecture:
    classes = config.get("architectures")
    known = {one.model_class: one for one in ARCHITECTURES.values()}
    name = classes[0] if isinstance(classes, list) and len(classes) == 1 else None
    if not isinstance(name, str) or name not in known:
        raise InvalidRecordError(
            "an architecture that is not exported to GGUF",
            where="architectures",
            expected=" or ".join(known),
            actual=repr(classes)[:80],
            advice="Export it as safetensors or modelpack.",
        )
    return known[name]


def _rope_theta(config: Table) -> float:
    """The base of the rotary angles, where they follow the plain formula."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if not isinstance(rope, dict) or kind != "default":
        raise InvalidRecordError(
            "scaled rotary angles are not exported to GGUF",
            where="rope_parameters",
            expected="rope_type 'default'",
            actual=repr(kind)[:80],
            advice="Export it as safetensors or modelpack.",
        )
    return _number(config | rope, "rope_theta", 10000.0)


def _count(config: Table, name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if type(value) is not int or not 0 < value <= _MAX:
        raise InvalidRecordError(
            "a size is missing or out of range",
            where=name,
            expected="a number above 0",
            actual=repr(value)[:80],
        )
    return value


def _number(config: Table, name: str, default: float) -> float:
    value = config.get(name)
    number = default if value is None else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= _MAX:
        raise InvalidRecordError(
            "a number is missing or out of range", where=name, actual=repr(number)[:80]
        )
    return float(number)
