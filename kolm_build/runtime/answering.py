"""The door of `kolm run`: a model is read in the quickest way that knows all of it.

By the compiled decoder, without torch (GEN-70); by a `Decoder`, on torch; by its modules. Steps do
not come through here: a step's code holds what reads a model, and how an answer is read faster
changes no step (GEN-64).
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from kolm_build.core.numerics import NATIVE
from kolm_build.errors import MachineError
from kolm_build.runtime.compiled_loading import compiled_speaker
from kolm_build.runtime.files import ModelFiles, find_model
from kolm_build.runtime.memory import give_back
from kolm_build.runtime.opening import OpenedModel


def opened(path: str | Path, *, threads: int = 1) -> OpenedModel:
    """The model at `path`, to be used; see `kolm_build.runtime.load`.

    Determinism:
        Every bit is that of `kolm_build.runtime.modules.opened`.

    Raises:
        MachineError: PyTorch has to be asked, and is not installed (GEN-75).
    """
    return answering(find_model(Path(path)), threads=threads)


def answering(files: ModelFiles, *, threads: int = 1) -> OpenedModel:
    """The model of `files`, to be used.

    Raises:
        MachineError: PyTorch has to be asked, and is not installed (GEN-75).
    """
    is_native = files.numerics == NATIVE
    found = None if is_native else _compiled(files, threads)
    if found is None:
        _need_torch(files.source)
        found = None if is_native else _by_decoder(files, threads)
    if found is not None:
        return found
    # Seconds of imports, and only for models that no `Decoder` reads (GEN-60).
    from kolm_build.runtime import modules

    return modules.answering(files, threads=threads)


def _need_torch(source: str) -> None:
    try:
        import torch  # noqa: F401 -- whether it is there
    except ImportError:
        raise MachineError(
            "a model that PyTorch has to read",
            where=source,
            expected="the distributions torch and transformers",
            actual="not installed",
            advice="pip install 'kolm-build[steps]'",
        ) from None


def _compiled(files: ModelFiles, threads: int) -> OpenedModel | None:
    speaker = compiled_speaker(files, threads=threads)
    give_back()
    if speaker is None:
        return None
    # The library looks at the floating point environment itself, whenever it reads (GEN-73).
    return OpenedModel(model=speaker, arithmetic=nullcontext)


def by_decoder(path: Path, *, threads: int = 1) -> OpenedModel | None:
    """The model at `path`, read by torch's operators; None where no `Decoder` reads it."""
    return _by_decoder(find_model(path), threads)


def _by_decoder(files: ModelFiles, threads: int) -> OpenedModel | None:
    from kolm_build.numerics import portable
    from kolm_build.runtime.arithmetic import portable_arithmetic
    from kolm_build.runtime.decoder_loading import decoding_speaker

    portable.load()
    speaker = decoding_speaker(files)  # compares, and computes nothing
    give_back()
    if speaker is None:
        return None
    return OpenedModel(model=speaker, arithmetic=portable_arithmetic(threads, own_code=True))
