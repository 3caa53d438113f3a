"""The formats that an artifact is exported to: a table that the command line can read at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format.

    Attributes:
        step: The step that writes it.
        params: The step's parameters.
        suffix: What follows the artifact's name in a file's or folder's name.
        is_folder: Whether it is a folder.
        numerics: The class that the step computes in.
        distributions: What it needs beside what a recipe's environment has.
    """

    step: str
    params: tuple[tuple[str, str], ...] = ()
    suffix: str
    is_folder: bool = False
    numerics: str = "exact-1"
    distributions: tuple[str, ...] = ()


def _gguf(kind: str) -> Format:
    return Format(step="export-gguf", params=(("kind", kind),), suffix=f".{kind}.gguf")


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "gguf-f16": _gguf("f16"),
        "gguf-q8_0": _gguf("q8_0"),
        "gguf-q4_0": _gguf("q4_0"),
        "gguf-q4_k_m": _gguf("q4_k_m"),
        "safetensors": Format(
            step="export-safetensors",
            params=(("dtype", "stored"),),
            suffix="-safetensors",
            is_folder=True,
        ),
        "onnx": Format(
            step="export-onnx",
            suffix="-onnx",
            is_folder=True,
            numerics="portable-1",
            distributions=("onnx", "onnxscript"),
        ),
        "modelpack": Format(step="export-modelpack", suffix="-modelpack", is_folder=True),
    }
)
