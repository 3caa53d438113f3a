"""The weights of a model folder as numbers: those of a quantised one dequantised (EXPORT-7)."""

from __future__ import annotations

from pathlib import Path

from kolm_build.core.quantisation_config import KEY, from_config
from kolm_build.core.safetensors import DTYPE_BYTES
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._model_tree import CONFIG, WEIGHTS, Table, read_table
from kolm_build.steps._weights import Weight, read_weights


def read_plain(folder: Path, config: Table) -> tuple[Weight, ...]:
    """The tensors of the model folder `folder`, by their plain names; read when asked for.

    Args:
        folder: The model.
        config: Its ``config.json``.

    Raises:
        InvalidRecordError: A file is bad, or quantised in a way that is not known.
    """
    file = folder / WEIGHTS
    if not is_quantised(config):
        return read_weights(file)
    from kolm_build.steps._dequantised import dequantised  # brings torch, which others need not

    try:
        layers = from_config(config[KEY])
    except InvalidRecordError as error:
        raise error.in_file(CONFIG) from None
    return dequantised(read_weights(file, dtypes=DTYPE_BYTES), layers)


def is_quantised(config: Table) -> bool:
    """Whether the model with ``config.json`` `config` is quantised."""
    return config.get(KEY) is not None


def read_config(folder: Path) -> Table:
    """The ``config.json`` of `folder`.

    Raises:
        InvalidRecordError: There is none, or it is not strict JSON.
    """
    config = read_table(folder, CONFIG)
    if not config:
        raise InvalidRecordError("the model has no configuration", file=CONFIG)
    return config
