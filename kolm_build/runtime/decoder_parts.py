"""What a model's file must hold for a `Decoder`, whoever computes it: names, shapes and dtypes.

A tensor is asked for once, and every one must be asked for (GEN-51).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from kolm_build.core.quantisation_config import LayerGroup
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.decoder_config import ATTENTION, MLP, DecoderConfig
from kolm_build.runtime.stored import stored_of

EMBEDDING, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"

T = TypeVar("T")

Described = Callable[[T], tuple[str, tuple[int, ...]]]
"""The dtype of a tensor, by its safetensors name, and its shape."""

IsSound = Callable[[str, T, tuple[int, int]], bool]
"""Whether a quantised layer of a shape may have a tensor as one of its parts (GEN-45)."""


def linears(config: DecoderConfig) -> Mapping[str, tuple[int, int]]:
    """Rows and columns of each linear layer, by name."""
    read_rows = config.heads * config.head_width
    key_rows = config.key_heads * config.head_width
    rows = dict(zip(ATTENTION, (read_rows, key_rows, key_rows, config.hidden), strict=True))
    columns = dict.fromkeys(ATTENTION, config.hidden) | {ATTENTION[-1]: read_rows}
    inner = dict(
        zip(
            MLP,
            ((config.inner, config.hidden),) * 2 + ((config.hidden, config.inner),),
            strict=True,
        )
    )
    found: dict[str, tuple[int, int]] = {HEAD: (config.vocabulary, config.hidden)}
    for number in range(config.layers):
        name = f"model.layers.{number}"
        found |= {f"{name}.self_attn.{one}": (rows[one], columns[one]) for one in ATTENTION}
        found |= {f"{name}.mlp.{one}": shape for one, shape in inner.items()}
    return found


def norms(config: DecoderConfig) -> Sequence[str]:
    """The name of each norm, the last one last."""
    parts = ("input_layernorm", "post_attention_layernorm")
    names = [f"model.layers.{number}.{part}" for number in range(config.layers) for part in parts]
    return [*names, NORM]


def with_tied(config: DecoderConfig, tensors: Mapping[str, T]) -> dict[str, T]:
    """`tensors`, and the head's, which is the embedding's by a second name and not in the file.

    Raises:
        InvalidRecordError: A head that is the embedding is there, or the embedding is not; or the
            file has fewer tensors than the network layers, whose names alone would fill memory.
    """
    given = dict(tensors)
    if config.layers > len(given):
        raise unfit("layers", config.layers)
    head, embedding = f"{HEAD}.weight", f"{EMBEDDING}.weight"
    if config.is_tied:
        if head in given or embedding not in given:
            raise unfit(head, "there")
        given[head] = given[embedding]
    return given


class Given(Generic[T]):
    """The tensors of a file, each to be taken once.

    Args:
        tensors: By name.
        layers: How the quantised layers are stored, by name.
        dtype: What the network computes in, by its safetensors name; the dtype of everything that
            is not quantised.
        described: Says dtype and shape of a tensor.
        is_sound: Whether a quantised layer may have a tensor.
    """

    def __init__(
        self,
        tensors: Mapping[str, T],
        layers: Mapping[str, LayerGroup],
        dtype: str,
        *,
        described: Described[T],
        is_sound: IsSound[T],
    ) -> None:
        self._left = dict(tensors)
        self._layers = dict(layers)
        self._dtype = dtype
        self._described = described
        self._is_sound = is_sound

    def take(self, name: str, shape: Sequence[int], dtype: str = "") -> T:
        """The tensor `name`.

        Raises:
            InvalidRecordError: There is none, or one of another shape or dtype.
        """
        found = self._left.pop(name, None)
        if found is None or self._described(found) != (dtype or self._dtype, tuple(shape)):
            raise unfit(name, None if found is None else self._described(found))
        return found

    def bias(self, name: str, rows: int, biased: frozenset[str]) -> T | None:
        """The bias of the linear layer `name`; None where it has none."""
        has_bias = name.rpartition(".")[2] in biased
        return self.take(f"{name}.bias", (rows,)) if has_bias else None

    def group(self, name: str) -> LayerGroup | None:
        """How the layer `name` is quantised, asked once; None where it is not."""
        return self._layers.pop(name, None)

    def parts(self, name: str, group: LayerGroup, shape: tuple[int, int]) -> dict[str, T]:
        """The tensors of a quantised layer, by the last part of their names.

        Raises:
            InvalidRecordError: One is missing, does not fit, or stands for no number.
        """
        found = {
            part: self.take(f"{name}.{part}", one.shape, one.dtype)
            for part, one in stored_of(group, shape, self._dtype).items()
        }
        for part, tensor in found.items():
            if not self._is_sound(part, tensor, shape):
                raise unfit(f"{name}.{part}", "no numbers")
        return found

    def done(self) -> None:
        """Refuse a tensor or a quantised layer that no part of the network has asked for."""
        left = sorted(self._left.keys() | self._layers.keys())
        if left:
            raise unfit(left[0], "not asked for")


def unfit(name: str, actual: object) -> InvalidRecordError:
    """What is said of a tensor that no `Decoder` reads."""
    return InvalidRecordError(
        "not what a decoder reads", where=f"model.safetensors: {name}", actual=str(actual)[:200]
    )
