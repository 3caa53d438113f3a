"""A `Decoder` from a model's files, where it knows all that they say (GEN-51, GEN-60).

What is refused here is not a bad model: whoever calls asks the network itself, whose loader says
what is wrong where something is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch.nn import functional

from kolm_build.numerics.state import DTYPE_NAMES
from kolm_build.runtime.asked_network import asked
from kolm_build.runtime.decoder import Decoder, Map, Parts, plain_product, quantised_product
from kolm_build.runtime.decoder_parts import EMBEDDING, Given, linears, norms, unfit
from kolm_build.runtime.decoder_settings import DecoderSettings
from kolm_build.runtime.decoder_speaker import speaker_by
from kolm_build.runtime.files import ModelFiles
from kolm_build.runtime.generate import reads
from kolm_build.runtime.products import Tensors
from kolm_build.runtime.prompt_cache import PromptCache
from kolm_build.runtime.quantised import embedded, is_sound
from kolm_build.runtime.room import Room, joined_rooms
from kolm_build.runtime.speaker import Speaker
from kolm_build.runtime.weights import DTYPES


def decoding_speaker(files: ModelFiles) -> Speaker | None:
    """What answers by a `Decoder`, in `portable-1`; None where the network itself must be asked.

    Args:
        files: The model's.

    Raises:
        InvalidRecordError: The tokenizer or the chat template is bad.
    """
    return speaker_by(
        files,
        lambda files: decoder_of(files.table("config.json"), files.weights().tensors),
        read_by=lambda decoder: PromptCache(reads(decoder), Room.keep).read,
        join=asked(joined_rooms),
    )


def decoder_of(settings: Mapping[str, object], tensors: Tensors) -> Decoder:
    """The `Decoder` of a network.

    Args:
        settings: What config.json says.
        tensors: Every tensor of the model, by name; they are used where they lie.

    Raises:
        InvalidRecordError: A setting, name, shape or dtype is not one that a `Decoder` knows.
    """
    said = DecoderSettings.of(settings, (_name_of(one.dtype) for one in tensors.values()))
    config, dtype = said.config, DTYPES[said.dtype]
    given = said.given(
        tensors,
        described=lambda one: (_name_of(one.dtype), tuple(one.shape)),
        is_sound=is_sound,
    )
    parts = Parts(
        embed=_embedding(given, (config.vocabulary, config.hidden), dtype),
        products={
            name: _product(given, name, shape, config.biased)
            for name, shape in linears(config).items()
        },
        norms={name: given.take(f"{name}.weight", (config.hidden,)) for name in norms(config)},
        dtype=dtype,
    )
    given.done()
    return Decoder(config, parts)


def _name_of(dtype: torch.dtype) -> str:
    """The safetensors name of a dtype; torch's own where it has none."""
    return DTYPE_NAMES.get(dtype, str(dtype))


def _product(
    given: Given[torch.Tensor], name: str, shape: tuple[int, int], biased: frozenset[str]
) -> Map:
    """The linear layer `name`."""
    bias, group = given.bias(name, shape[0], biased), given.group(name)
    if group is None:
        return plain_product(given.take(f"{name}.weight", shape), bias)
    return quantised_product(given.parts(name, group, shape), group, bias)


def _embedding(given: Given[torch.Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Map:
    """The embedding."""
    group = given.group(EMBEDDING)
    if group is None:
        weight = given.take(f"{EMBEDDING}.weight", shape)
        return lambda ids: functional.embedding(ids, weight)
    if not group.grid.symmetric:
        raise unfit(EMBEDDING, group.grid)
    tensors = given.parts(EMBEDDING, group, shape)
    return partial(embedded, tensors=tensors, group=group, columns=shape[1], dtype=dtype)
