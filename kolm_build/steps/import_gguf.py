"""``import-gguf``: a GGUF file to a plain model folder (spec/steps.md).

Quantised weights are dequantised: the folder holds what the GGUF file computes with, not the
weights that its maker had before quantising.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
from gguf.quants import dequantize

from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._architectures import (
    Sizes,
    config_value,
    read_sizes,
    swapped_heads,
    tensor_names,
    token_ids,
)
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import (
    input_folder,
    only_file,
    output_folder,
    write_json,
    write_tokenizer,
)
from kolm_build.steps._gguf import Gguf, Tensor, read_gguf
from kolm_build.steps._tokenizer import Tokenizer
from kolm_build.steps._weights import (
    CONFIG_DTYPES,
    Array,
    Weight,
    parse_dtype,
    to_bytes,
    write_weights,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write the model folder of the one GGUF file in `source`."""
    dtype = parse_dtype(request.params)
    out = output_folder(request)
    file = only_file(input_folder(request, "source"), role="source", suffixes=(".gguf",))
    gguf = read_gguf(file)
    try:
        tokenizer = Tokenizer.from_gguf(gguf)
        sizes = read_sizes(gguf, len(tokenizer.tokens))
        weights = _weights(gguf, sizes, dtype)
        write_weights(out / "model.safetensors", weights, events.bytes_progress)
    except InvalidRecordError as error:
        raise error.in_file(file.name) from None
    config = config_value(sizes, CONFIG_DTYPES[dtype], tokenizer.specials)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", token_ids(tokenizer.specials))
    write_tokenizer(out / "tokenizer.json", tokenizer.to_value())
    write_json(out / "tokenizer_config.json", tokenizer.config_value(sizes.context))
    if tokenizer.chat_template:
        (out / "chat_template.jinja").write_bytes(tokenizer.chat_template.encode())
    events.log(f"{len(weights)} tensors of {file.name}, dequantised from {_kinds(gguf)}")


def _weights(gguf: Gguf, sizes: Sizes, dtype: str) -> list[Weight]:
    expected = tensor_names(sizes)
    _check_tensors(gguf, expected)
    return [
        Weight(
            name=hf_name,
            dtype=dtype,
            shape=shape,
            read=_reader(gguf, gguf.tensors[name], dtype=dtype, heads=swapped_heads(sizes, name)),
        )
        for name, (hf_name, shape) in expected.items()
    ]


def _check_tensors(gguf: Gguf, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    lacking = sorted(expected.keys() - gguf.tensors.keys())
    unknown = sorted(gguf.tensors.keys() - expected.keys())
    if lacking or unknown:
        raise InvalidRecordError(
            "the tensors are not those of the architecture",
            where=(lacking or unknown)[0],
            expected=f"{len(expected)} tensors",
            actual=f"{len(gguf.tensors)} tensors, {len(lacking)} missing, {len(unknown)} unknown",
        )
    for name, (_, shape) in expected.items():
        if gguf.tensors[name].shape != shape:
            raise InvalidRecordError(
                "a tensor's shape is not what the metadata says",
                where=name,
                expected=str(shape),
                actual=str(gguf.tensors[name].shape),
            )


def _reader(gguf: Gguf, tensor: Tensor, *, dtype: str, heads: int) -> Callable[[], memoryview]:
    """What gives the bytes of `tensor` in `dtype`, the rows of `heads` heads un-interleaved."""

    def read() -> memoryview:
        values = _dequantized(gguf, tensor)
        return to_bytes(_halves(values, heads) if heads else values, dtype)

    return read


def _dequantized(gguf: Gguf, tensor: Tensor) -> Array:
    """The values of `tensor` as float32, shape as in the file."""
    rows = prod(tensor.shape[:-1])
    stored = np.frombuffer(gguf.data[tensor.begin : tensor.end], np.uint8).reshape(rows, -1)
    try:
        values = dequantize(stored, tensor.kind)
    except NotImplementedError:
        raise InvalidRecordError(
            "a tensor type that cannot be dequantised",
            where=tensor.name,
            actual=tensor.kind.name,
        ) from None
    return np.asarray(values, np.float32).reshape(tensor.shape)


def _halves(values: Array, heads: int) -> Array:
    """Rows (head, pair, 2) to rows (head, 2, pair): from interleaved to half against half."""
    rows, columns = values.shape
    pairs = rows // heads // 2
    return values.reshape(heads, pairs, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _kinds(gguf: Gguf) -> str:
    return ", ".join(sorted({tensor.kind.name for tensor in gguf.tensors.values()}))
