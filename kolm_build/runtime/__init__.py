"""Loads a model folder or an artifact and generates deterministically.

The library's door is `load`: ``kolm_build.runtime.load("triage.kolm").generate("Hello").text``.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from kolm_build.runtime.opening import OpenedModel


def load(path: str | Path, *, threads: int = 1) -> OpenedModel:
    """The model in the folder or artifact at `path`, in the arithmetic it was judged in.

    Args:
        path: A Hugging Face folder with one safetensors file, or a `.kolm` file. Weights are
            mapped where they lie; quantised ones stay as they are stored.
        threads: Compute threads; in `portable-1` they change no bit.

    Raises:
        InvalidRecordError: A file is missing or bad, or it is not a causal language model that
            this program knows.
        KernelsMissingError: The portable kernels are not compiled.
    """
    # By its name, and not by `import`: a step's code is what its modules import (spec/engine.md),
    # and no step comes through this door.
    opened: OpenedModel = import_module("kolm_build.runtime.answering").opened(
        path, threads=threads
    )
    return opened
