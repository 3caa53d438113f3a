"""``import-model``: a Hugging Face folder to the one plain form of it (spec/steps.md).

The result has one weights file in the canonical order and tables with sorted keys, without what
depends on who saved them. The values stay as they are, unless the recipe names a dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, output_folder, write_json, write_tokenizer
from kolm_build.steps._model_tree import (
    CONFIG,
    WEIGHTS,
    Table,
    check_files,
    read_config,
    read_table,
    read_tensors,
    read_tokenizer,
)
from kolm_build.steps._weights import (
    CONFIG_DTYPES,
    Weight,
    converted,
    parse_dtype,
    write_weights,
)

_OF_THE_SAVER = ("_name_or_path", "torch_dtype", "transformers_version", "_from_model_config")
"""Entries that tell who saved a folder and how; `torch_dtype` is the old name of `dtype`."""

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write the model folder of the Hugging Face folder `source`."""
    dtype = parse_dtype(request.params, default="")
    folder, out = input_folder(request, "source"), output_folder(request)
    check_files(folder)
    config = read_config(folder)
    tokenizer, tokenizer_config, template = read_tokenizer(folder)
    generation = read_table(folder, "generation_config.json")
    weights = _in_dtype(read_tensors(folder), dtype)
    try:
        write_weights(out / WEIGHTS, weights, events.bytes_progress)
    except InvalidRecordError as error:
        raise error.in_file(WEIGHTS) from None
    ids = {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}
    write_json(out / CONFIG, _plain(config) | {"dtype": _config_dtype(weights)})
    write_json(out / "generation_config.json", _plain(generation) or ids)
    write_tokenizer(out / "tokenizer.json", tokenizer)
    write_json(out / "tokenizer_config.json", _plain(tokenizer_config))
    if template:
        (out / "chat_template.jinja").write_bytes(template.encode())
    events.log(f"{len(weights)} tensors")


def _in_dtype(weights: Sequence[Weight], dtype: str) -> Sequence[Weight]:
    return [converted(weight, dtype) for weight in weights] if dtype else weights


def _config_dtype(weights: Sequence[Weight]) -> str:
    """The dtype that most of the values have, as ``config.json`` names it."""
    sizes = dict.fromkeys(CONFIG_DTYPES, 0)
    for weight in weights:
        sizes[weight.dtype] += prod(weight.shape)
    return CONFIG_DTYPES[max(sizes, key=lambda dtype: sizes[dtype])]


def _plain(table: Table) -> Table:
    return {name: value for name, value in table.items() if name not in _OF_THE_SAVER}
