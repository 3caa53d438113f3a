"""``export-safetensors``: an artifact's model as a plain Hugging Face folder (spec/exports.md).

As stored, every file is the artifact's, and so is every tensor: the weights file alone has another
header, which names the artifact. On request the weights become plain numbers of one dtype.
"""

from __future__ import annotations

import mmap
import shutil
from pathlib import Path

from kolm_build.core.fields import Fields
from kolm_build.core.quantisation_config import KEY
from kolm_build.core.request import StepRequest
from kolm_build.core.safetensors import (
    PREFIX_BYTES,
    data_order,
    encode_header,
    header_length,
    parse_header,
)
from kolm_build.steps._artifact import SOURCE, Artifact
from kolm_build.steps._bounds import choice
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import output_folder, write_json
from kolm_build.steps._model_tree import CONFIG, WEIGHTS
from kolm_build.steps._plain_weights import is_quantised, read_config, read_plain
from kolm_build.steps._weights import (
    CONFIG_DTYPES,
    DTYPES,
    METADATA,
    converted,
    write_weights,
)

STORED = "stored"


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write the model folder."""
    fields = Fields(request.params)
    dtype = choice(fields, "dtype", STORED, (STORED, *DTYPES))
    fields.done()
    artifact, out = Artifact.read(request), output_folder(request)
    changed = {WEIGHTS} if dtype == STORED else {CONFIG, WEIGHTS}
    for path, _ in artifact.members:
        if path not in changed:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.model / path, out / path)
    if dtype == STORED:
        _with_source(artifact, out / WEIGHTS)
    else:
        write_plain(artifact, out, DTYPES[dtype], events)


def _metadata(artifact: Artifact) -> dict[str, str]:
    return {**METADATA, SOURCE: artifact.id}


def _with_source(artifact: Artifact, out: Path) -> None:
    """Write the tensors of the artifact's weights file to `out`, under a header that names it."""
    source = artifact.model / WEIGHTS
    size = source.stat().st_size
    with source.open("rb") as file, out.open("xb") as made:
        length = header_length(file.read(PREFIX_BYTES), size)
        header = parse_header(file.read(length), size)
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        tensors = [(one.name, one.dtype, one.shape) for one in header.tensors]
        places = {one.name: one for one in header.tensors}
        made.write(encode_header(tensors, {**header.metadata, **_metadata(artifact)}))
        for name, _, _ in data_order(tensors):
            place = places[name]
            made.write(data[header.data_start + place.begin : header.data_start + place.end])


def write_plain(artifact: Artifact, out: Path, dtype: str, events: Events) -> None:
    """Write config.json and the weights, as numbers of the file dtype `dtype`, to `out`."""
    config = read_config(artifact.model)
    weights = [converted(one, dtype) for one in read_plain(artifact.model, config)]
    write_weights(out / WEIGHTS, weights, events.bytes_progress, metadata=_metadata(artifact))
    plain = {name: value for name, value in config.items() if name != KEY}
    write_json(out / CONFIG, plain | {"dtype": CONFIG_DTYPES[dtype]})
    events.log(f"{len(weights)} tensors as {dtype}")
    if is_quantised(config):
        events.log("the artifact's model is quantised: its weights were dequantised first")
