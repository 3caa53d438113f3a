"""The door of `kolm run`: a model opened, its network read by a `Decoder` where one knows it.

It is beside `opening` and not in it: a step's code holds what opens a model, and how an answer is
read faster changes no step (spec/engine.md).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kolm_build.runtime import opening
from kolm_build.runtime.decoder import Decoder, is_known
from kolm_build.runtime.opening import OpenedModel
from kolm_build.runtime.prompt_cache import PromptCache


def opened(path: str | Path, *, threads: int = 1) -> OpenedModel:
    """The model at `path`, to be used; see `kolm_build.runtime.load`.

    Determinism:
        Every bit is that of `kolm_build.runtime.opening.opened`.
    """
    return swift(opening.opened(path, threads=threads))


def swift(model: OpenedModel) -> OpenedModel:
    """`model` with a `Decoder` in the place of its network, where that changes no bit."""
    network = model.model.network
    is_portable = model.model.prompts is not None
    if not is_portable or not is_known(network):
        return model
    decoder = Decoder(network)
    return replace(model, model=replace(model.model, network=decoder, prompts=PromptCache(decoder)))
