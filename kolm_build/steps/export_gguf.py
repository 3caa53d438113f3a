"""``export-gguf``: an artifact's model as a GGUF file (spec/exports.md).

The blocks are those that llama.cpp would make of the same weights; the file names the artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType as Kind

from kolm_build.core.fields import Fields
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._architectures import Sizes, swapped_heads, tensor_names
from kolm_build.steps._artifact import SOURCE, Artifact
from kolm_build.steps._bounds import choice
from kolm_build.steps._config_sizes import gguf_name, size_entries, sizes_of
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import output_folder
from kolm_build.steps._gguf_blocks import blocks
from kolm_build.steps._gguf_mixture import MIXTURES, Mixture, kind_of
from kolm_build.steps._gguf_tokenizer import read_entries
from kolm_build.steps._gguf_writer import Entry, Stored, write_gguf
from kolm_build.steps._plain_weights import is_quantised, read_config, read_plain
from kolm_build.steps._weights import Array, Weight, check_finite, to_float32

QUANTISATION_VERSION = 2
"""ggml's version of its blocks."""


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write NAME.gguf."""
    fields = Fields(request.params)
    kind = choice(fields, "kind", "f16", tuple(MIXTURES))
    fields.done()
    artifact = Artifact.read(request)
    name = artifact.manifest.name
    try:
        model = _Model.read(artifact, MIXTURES[kind])
    except InvalidRecordError as error:
        raise error.in_file(f"{name}.kolm") from None
    tensors = tuple(model.tensors())
    write_gguf(
        output_folder(request) / f"{name}.gguf", model.entries, tensors, events.bytes_progress
    )
    events.log(f"{len(tensors)} tensors as {_kinds(tensors)}")
    if model.is_dequantised:
        events.log("the artifact's model is quantised: its weights were dequantised first")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What is written.

    Attributes:
        sizes: The model's sizes.
        mixture: How it is stored.
        weights: Its weights by their Hugging Face names.
        entries: The metadata.
        is_dequantised: Whether the weights were quantised.
    """

    sizes: Sizes
    mixture: Mixture
    weights: Mapping[str, Weight]
    entries: Mapping[str, Entry]
    is_dequantised: bool

    @classmethod
    def read(cls, artifact: Artifact, mixture: Mixture) -> _Model:
        """The model of `artifact`, its tensors checked against its sizes."""
        config = read_config(artifact.model)
        sizes = sizes_of(config)
        tokenizer = read_entries(artifact.model, config)
        weights = {one.name: one for one in read_plain(artifact.model, config)}
        _check_tensors(weights, sizes)
        head: dict[str, Entry] = {
            "general.architecture": gguf_name(sizes),
            "general.type": "model",
            "general.name": artifact.manifest.name,
            "general.license": artifact.manifest.licence,
            "general.file_type": mixture.file_type,
            "general.quantization_version": QUANTISATION_VERSION,
            SOURCE: artifact.id,
        }
        return cls(
            sizes=sizes,
            mixture=mixture,
            weights=weights,
            entries={**head, **size_entries(sizes), **tokenizer.entries},
            is_dequantised=is_quantised(config),
        )

    def tensors(self) -> Iterator[Stored]:
        """The tensors to write, in the order of the file."""
        for name, (theirs, shape) in tensor_names(self.sizes).items():
            kind = kind_of(
                self.mixture,
                name,
                shape,
                layers=self.sizes.layers,
                is_tied=self.sizes.is_tied,
            )
            heads = swapped_heads(self.sizes, name)
            read = _reader(self.weights[theirs], kind, heads)
            yield Stored(name=name, shape=shape, kind=kind, read=read)


def _check_tensors(weights: Mapping[str, Weight], sizes: Sizes) -> None:
    expected = dict(tensor_names(sizes).values())
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else None
        if found != expected.get(name):
            raise InvalidRecordError(
                "the tensors are not those of the architecture",
                where=name,
                expected=str(expected.get(name, "no such tensor")),
                actual=str(found or "no such tensor"),
            )


def _reader(weight: Weight, kind: Kind, heads: int) -> Callable[[], Array]:
    """What gives the bytes of `weight` as `kind`, the rows of `heads` heads interleaved."""

    def read() -> Array:
        data = weight.read()
        check_finite(data, weight.dtype, weight.name)
        values = to_float32(data, weight.dtype).reshape(weight.shape)
        rows = _interleaved(values, heads) if heads else values
        try:
            return blocks(rows.reshape(-1, weight.shape[-1]), kind)
        except InvalidRecordError as error:
            raise error.under(weight.name) from None

    return read


def _interleaved(values: Array, heads: int) -> Array:
    """Rows (head, 2, pair) to rows (head, pair, 2): from half against half to interleaved."""
    rows, columns = values.shape
    pairs = rows // heads // 2
    return np.ascontiguousarray(
        values.reshape(heads, 2, pairs, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def _kinds(tensors: tuple[Stored, ...]) -> str:
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.kind.name] = counts.get(tensor.kind.name, 0) + 1
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items()))
