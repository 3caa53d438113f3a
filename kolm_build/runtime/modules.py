"""A model that answers by the modules of transformers: any architecture it knows, either class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from kolm_build.core.numerics import NATIVE
from kolm_build.runtime.arithmetic import native_arithmetic, portable_arithmetic
from kolm_build.runtime.asked_network import asked
from kolm_build.runtime.files import ModelFiles, find_model
from kolm_build.runtime.generate import Prefix, read_prompts, reads
from kolm_build.runtime.loading import Model, loaded
from kolm_build.runtime.opening import TOGETHER, OpenedModel
from kolm_build.runtime.prompt_cache import PromptCache
from kolm_build.runtime.ragged import joined
from kolm_build.runtime.speaker import Speaker


def opened(path: Path, *, threads: int = 1) -> OpenedModel:
    """The model at `path`, to be used; see `kolm_build.runtime.load`."""
    return answering(find_model(path), threads=threads)


def answering(files: ModelFiles, *, threads: int = 1) -> OpenedModel:
    """The model of `files`, to be used."""
    is_portable = files.numerics != NATIVE
    if is_portable:
        arithmetic = portable_arithmetic(threads, own_code=False)
    else:
        arithmetic = native_arithmetic(threads)
    with arithmetic():
        model = speaker(loaded(files), is_portable=is_portable)
    return OpenedModel(model=model, arithmetic=arithmetic, together=TOGETHER if is_portable else 1)


def speaker(model: Model, *, is_portable: bool) -> Speaker:
    """What answers by `model`.

    Args:
        model: The model.
        is_portable: Whether it computes in `portable-1`, where reading in parts changes no bit.
    """
    network = model.network
    read = PromptCache(reads(network), keep).read if is_portable else partial(_read, network)
    return Speaker(
        network=network,
        chat=model.chat,
        window=model.window,
        words=int(network.config.get_text_config().vocab_size),
        read=read,
        join=asked(joined),
    )


def _read(network: Any, ids: Sequence[int]) -> Prefix:
    return read_prompts(network, [ids])


@dataclass(frozen=True, slots=True)
class _Kept:
    """Keys and values of each layer, shape (1, heads, tokens, size of a head)."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def tokens(self) -> int:
        """How many tokens they are of."""
        return self.layers[0][0].shape[2]

    def started(self, tokens: int) -> DynamicCache:
        """A cache of the first `tokens`; the ones kept stay as they are: reading on copies."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys[:, :, :tokens], values[:, :, :tokens], number)
        return cache


def keep(cache: Any) -> _Kept | None:
    """The keys and values in transformers' `cache`; None where a layer forgets keys."""
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    return _Kept(tuple((layer.keys, layer.values) for layer in cache.layers))
