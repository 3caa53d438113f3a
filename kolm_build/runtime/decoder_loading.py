"""A `Decoder` from a model's files, where it knows all that they say (GEN-51, GEN-60).

What is refused here is not a bad model: whoever calls asks the network itself, whose loader says
what is wrong where something is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch.nn import functional

from kolm_build.core.attached_files import has_adapter
from kolm_build.core.quantisation_config import KEY, LayerGroup, from_config
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.state import DTYPE_NAMES
from kolm_build.runtime.chat import Chat
from kolm_build.runtime.decoder import Decoder, Map, Parts, plain_product, quantised_product
from kolm_build.runtime.decoder_config import ATTENTION, MLP, DecoderConfig, read
from kolm_build.runtime.files import ModelFiles
from kolm_build.runtime.products import Tensors
from kolm_build.runtime.prompt_cache import PromptCache
from kolm_build.runtime.quantised import embedded, is_sound, stored_of
from kolm_build.runtime.room import Room, joined_rooms
from kolm_build.runtime.speaker import Speaker
from kolm_build.runtime.weights import COMPUTE_DTYPES, DTYPES, named_dtype, stored_dtype

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"


def decoding_speaker(files: ModelFiles) -> Speaker | None:
    """What answers by a `Decoder`, in `portable-1`; None where the network itself must be asked.

    Args:
        files: The model's.

    Raises:
        InvalidRecordError: The tokenizer or the chat template is bad.
    """
    if has_adapter(files.extents.keys()):
        return None
    try:
        decoder = decoder_of(files.table("config.json"), files.weights().tensors)
    except InvalidRecordError:
        return None
    return Speaker(
        network=decoder,
        chat=Chat.of(files),
        window=decoder.config.window,
        words=decoder.config.vocabulary,
        read=PromptCache(decoder, Room.keep).read,
        join=joined_rooms,
    )


def decoder_of(settings: Mapping[str, object], tensors: Tensors) -> Decoder:
    """The `Decoder` of a network.

    Args:
        settings: What config.json says.
        tensors: Every tensor of the model, by name; they are used where they lie.

    Raises:
        InvalidRecordError: A setting, name, shape or dtype is not one that a `Decoder` knows.
    """
    plain = {name: one for name, one in settings.items() if name != KEY}
    config = read(plain)
    layers: Mapping[str, LayerGroup] = {}
    dtype = stored_dtype(tensors)
    if KEY in settings:
        layers, dtype = from_config(settings[KEY]).by_layer(), named_dtype("", settings)
    if dtype not in COMPUTE_DTYPES.values():
        raise _unfit("dtype", dtype)
    given = _Given(_with_tied(config, tensors), layers, dtype)
    parts = Parts(
        embed=given.embedding(_EMBEDDING, config.vocabulary, config.hidden),
        products={
            name: given.product(name, shape, has_bias=name.rpartition(".")[2] in config.biased)
            for name, shape in _linears(config).items()
        },
        norms={name: given.take(f"{name}.weight", (config.hidden,)) for name in _norms(config)},
        dtype=dtype,
    )
    given.done()
    return Decoder(config, parts)


def _linears(config: DecoderConfig) -> Mapping[str, tuple[int, int]]:
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
    found: dict[str, tuple[int, int]] = {_HEAD: (config.vocabulary, config.hidden)}
    for number in range(config.layers):
        name = f"model.layers.{number}"
        found |= {f"{name}.self_attn.{one}": (rows[one], columns[one]) for one in ATTENTION}
        found |= {f"{name}.mlp.{one}": shape for one, shape in inner.items()}
    return found


def _norms(config: DecoderConfig) -> Sequence[str]:
    parts = ("input_layernorm", "post_attention_layernorm")
    names = [f"model.layers.{number}.{part}" for number in range(config.layers) for part in parts]
    return [*names, "model.norm"]


def _with_tied(config: DecoderConfig, tensors: Tensors) -> dict[str, torch.Tensor]:
    """`tensors`, and the head's, which is the embedding's by a second name and not in the file."""
    given = dict(tensors)
    head, embedding = f"{_HEAD}.weight", f"{_EMBEDDING}.weight"
    if config.is_tied:
        if head in given or embedding not in given:
            raise _unfit(head, "there")
        given[head] = given[embedding]
    return given


class _Given:
    """The tensors of a file, each to be taken once.

    Args:
        tensors: By name.
        layers: How the quantised layers are stored, by name.
        dtype: What the network computes in; the dtype of everything that is not quantised.
    """

    def __init__(
        self, tensors: Tensors, layers: Mapping[str, LayerGroup], dtype: torch.dtype
    ) -> None:
        self._left = dict(tensors)
        self._layers = dict(layers)
        self._dtype = dtype

    def take(
        self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The tensor `name`."""
        found = self._left.pop(name, None)
        if found is None or found.shape != tuple(shape) or found.dtype != (dtype or self._dtype):
            raise _unfit(name, None if found is None else (found.dtype, tuple(found.shape)))
        return found

    def product(self, name: str, shape: tuple[int, int], *, has_bias: bool) -> Map:
        """The linear layer `name`."""
        bias = self.take(f"{name}.bias", shape[:1]) if has_bias else None
        group = self._layers.pop(name, None)
        if group is None:
            return plain_product(self.take(f"{name}.weight", shape), bias)
        return quantised_product(self._parts(name, group, shape), group, bias)

    def embedding(self, name: str, rows: int, columns: int) -> Map:
        """The embedding `name`."""
        group = self._layers.pop(name, None)
        if group is None:
            weight = self.take(f"{name}.weight", (rows, columns))
            return lambda ids: functional.embedding(ids, weight)
        if not group.grid.symmetric:
            raise _unfit(name, group.grid)
        tensors = self._parts(name, group, (rows, columns))
        return partial(embedded, tensors=tensors, group=group, columns=columns, dtype=self._dtype)

    def _parts(self, name: str, group: LayerGroup, shape: tuple[int, int]) -> Tensors:
        """The tensors of a quantised layer, by the last part of their names."""
        stored = stored_of(group, shape, DTYPE_NAMES[self._dtype])
        found = {
            part: self.take(f"{name}.{part}", one.shape, DTYPES[one.dtype])
            for part, one in stored.items()
        }
        for part, tensor in found.items():
            if not is_sound(part, tensor, shape):
                raise _unfit(f"{name}.{part}", "no numbers")
        return found

    def done(self) -> None:
        """Refuse a tensor or a quantised layer that no part of the network has asked for."""
        left = sorted(self._left.keys() | self._layers.keys())
        if left:
            raise _unfit(left[0], "not asked for")


def _unfit(name: str, actual: object) -> InvalidRecordError:
    return InvalidRecordError(
        "not what a decoder reads", where=f"model.safetensors: {name}", actual=str(actual)[:200]
    )
