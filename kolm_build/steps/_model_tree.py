"""A Hugging Face folder, read as what it may be: tables, and tensors in one file or in shards.

Nothing in it is ever executed: a file that could be (pickled weights, Python modules) is refused
by its name and by its first bytes, and so is a configuration that asks for one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._files import files_of
from kolm_build.steps._weights import Weight, read_weights

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 1 << 28

Table = dict[str, object]

_CODE = re.compile(
    r".*\.(bin|ckpt|dll|dylib|h5|joblib|keras|msgpack|npy|npz|onnx|pickle|pkl|pth?|pyc?|so|whl|zip)",
    re.IGNORECASE | re.DOTALL,
)
_MAGICS: Mapping[str, re.Pattern[bytes]] = {
    "a pickle": re.compile(rb"\x80[\x02-\x05]"),
    "a zip archive, as torch saves": re.compile(rb"PK\x03\x04"),
    "a program": re.compile(rb"\x7fELF"),
}
_CAUSAL = re.compile(r"\w+(ForCausalLM|LMHeadModel)")


def check_files(folder: Path) -> None:
    """Refuse files that some loader would execute.

    Raises:
        InvalidRecordError: There is one.
    """
    for name in files_of(folder):
        with (folder / name).open("rb") as file:
            first = file.read(4)
        held = [what for what, magic in _MAGICS.items() if magic.match(first)]
        if held or _CODE.fullmatch(name):
            raise InvalidRecordError(
                "a file that can hold code",
                file=name,
                expected="safetensors and JSON only",
                actual=held[0] if held else None,
                advice="Leave it out, for instance with `files` in [base], or convert the weights "
                "to safetensors.",
            )


def read_table(folder: Path, name: str) -> Table:
    """The JSON object in the file `name`; empty where there is no such file.

    Raises:
        InvalidRecordError: It is not strict JSON (floats are allowed here).
    """
    path = folder / name
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InvalidRecordError("a table is too large", file=name)
    try:
        table = json.loads(
            path.read_bytes().decode(),
            object_pairs_hook=_unrepeated,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError("not strict JSON", file=name, actual=str(error)[:100]) from None
    if type(table) is not dict:
        raise InvalidRecordError("not a JSON object", file=name)
    return table


def read_config(folder: Path) -> Table:
    """The configuration, of a causal language model in full precision.

    Raises:
        InvalidRecordError: It is missing or of another kind of model, or asks for code.
    """
    config = read_table(folder, CONFIG)
    if not config:
        raise InvalidRecordError("the model has no configuration", file=CONFIG)
    _check_no_code(config, CONFIG)
    classes = config.get("architectures")
    if not (isinstance(classes, list) and len(classes) == 1 and _CAUSAL.fullmatch(str(classes[0]))):
        raise InvalidRecordError(
            "not a causal language model",
            file=CONFIG,
            where="architectures",
            expected="one class named …ForCausalLM or …LMHeadModel",
            actual=repr(classes)[:80],
            advice="Encoders, sequence-to-sequence and vision models cannot be trained here.",
        )
    if config.get("quantization_config") is not None:
        raise InvalidRecordError(
            "the weights are quantised",
            file=CONFIG,
            where="quantization_config",
            expected="a model in fp32, fp16 or bf16",
        )
    return config


def read_tensors(folder: Path) -> tuple[Weight, ...]:
    """The tensors of the folder's one weights file, or of its shards.

    Raises:
        InvalidRecordError: There are none, the index and the shards disagree, or a file is bad.
    """
    index = read_table(folder, INDEX)
    if not index:
        return read_weights(_existing(folder, WEIGHTS))
    placed = index.get("weight_map")
    if type(placed) is not dict or not placed:
        raise InvalidRecordError("the index names no tensor", file=INDEX, where="weight_map")
    weights: dict[str, tuple[str, Weight]] = {}
    for shard in sorted({str(name) for name in placed.values()}):
        for weight in read_weights(_existing(folder, shard)):
            if weight.name in weights:
                raise InvalidRecordError("a tensor is there twice", file=shard, where=weight.name)
            weights[weight.name] = (shard, weight)
    _check_index({name: shard for name, (shard, _) in weights.items()}, placed)
    return tuple(weight for _, weight in weights.values())


def read_tokenizer(folder: Path) -> tuple[Table, Table, str]:
    """The tokenizer, its configuration without the chat template, and the template.

    Raises:
        InvalidRecordError: There is no ``tokenizer.json``, or two different templates.
    """
    tokenizer = read_table(folder, "tokenizer.json")
    if not tokenizer:
        raise InvalidRecordError(
            "the model has no tokenizer.json",
            file="tokenizer.json",
            actual=", ".join(files_of(folder)[:8]),
            advice="Save the fast tokenizer with transformers' save_pretrained first.",
        )
    config = read_table(folder, "tokenizer_config.json")
    _check_no_code(config, "tokenizer_config.json")
    config = read_table(folder, "special_tokens_map.json") | config
    inner = config.pop("chat_template", "")
    file = folder / "chat_template.jinja"
    outer = file.read_bytes().decode(errors="replace") if file.is_file() else ""
    if not isinstance(inner, str) or (inner and outer and inner != outer):
        raise InvalidRecordError(
            "more than one chat template", file="tokenizer_config.json", where="chat_template"
        )
    return tokenizer, config, outer or inner


def _check_no_code(config: Table, file: str) -> None:
    if "auto_map" in config or "custom_pipelines" in config:
        raise InvalidRecordError(
            "the model wants to run code of its own",
            file=file,
            where="auto_map" if "auto_map" in config else "custom_pipelines",
            expected="an architecture that transformers itself has",
            advice="kolm never runs code that comes with weights.",
        )


def _check_index(found: Mapping[str, str], placed: Mapping[str, object]) -> None:
    for name in sorted(found.keys() | placed.keys()):
        if found.get(name) != placed.get(name):
            raise InvalidRecordError(
                "the index and the shards disagree",
                file=INDEX,
                where=name,
                expected=str(placed.get(name, "not listed")),
                actual=found.get(name, "in no shard"),
            )


def _existing(folder: Path, name: str) -> Path:
    if name not in files_of(folder) or not name.endswith(".safetensors"):
        raise InvalidRecordError(
            "a weights file is missing",
            file=name,
            expected=f"{WEIGHTS}, or {INDEX} and its shards",
            actual=", ".join(files_of(folder)[:8]) or "an empty folder",
        )
    return folder / name


def _unrepeated(pairs: list[tuple[str, object]]) -> Table:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is repeated")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
