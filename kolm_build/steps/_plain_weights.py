"""The weights of a model folder as numbers: those of a quantised one dequantised (EXPORT-7)."""

from __future__ import annotations

from pathlib import Path

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._model_tree import CONFIG, WEIGHTS, Table, read_table
from kolm_build.steps._weights import Weight, read_weights

QUANTISED = "quantization_config"


def read_plain(folder: Path, config: Table) -> tuple[Weight, ...]:
    """The tensors of the model folder `folder`, mapped into memory, by their plain names.

    Args:
        folder: The model.
        config: Its ``config.json``.

    Raises:
        InvalidRecordError: A file is bad, or quantised in a way that is not known.
    """
    if config.get(QUANTISED) is not None:
        raise InvalidRecordError(
            "the model is quantised",
            file=CONFIG,
            where=QUANTISED,
            expected="a model in fp32, fp16 or bf16",
            advice="Export the artifact of the same recipe without [quantise].",
        )
    return read_weights(folder / WEIGHTS)


def read_config(folder: Path) -> Table:
    """The ``config.json`` of `folder`.

    Raises:
        InvalidRecordError: There is none, or it is not strict JSON.
    """
    config = read_table(folder, CONFIG)
    if not config:
        raise InvalidRecordError("the model has no configuration", file=CONFIG)
    return config
