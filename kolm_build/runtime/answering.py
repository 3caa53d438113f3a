"""The door of `kolm run`: a model is read by a `Decoder` where one knows it, else by its modules.

Steps do not come through here: a step's code holds what reads a model, and how an answer is read
faster changes no step (GEN-64).
"""

from __future__ import annotations

from pathlib import Path

from kolm_build.core.numerics import NATIVE
from kolm_build.numerics import portable
from kolm_build.runtime.decoder_loading import decoding_speaker
from kolm_build.runtime.files import find_model, numerics_of
from kolm_build.runtime.memory import give_back
from kolm_build.runtime.opening import OpenedModel, portable_arithmetic


def opened(path: str | Path, *, threads: int = 1) -> OpenedModel:
    """The model at `path`, to be used; see `kolm_build.runtime.load`.

    Determinism:
        Every bit is that of `kolm_build.runtime.modules.opened`.
    """
    place = Path(path)
    found = _by_decoder(place, threads) if numerics_of(place) != NATIVE else None
    if found is not None:
        return found
    # Seconds of imports, and only for models that no `Decoder` reads (GEN-60).
    from kolm_build.runtime import modules

    return modules.opened(place, threads=threads)


def _by_decoder(path: Path, threads: int) -> OpenedModel | None:
    portable.load()
    speaker = decoding_speaker(find_model(path))  # compares, and computes nothing
    give_back()
    if speaker is None:
        return None
    return OpenedModel(model=speaker, arithmetic=portable_arithmetic(threads, own_code=True))
