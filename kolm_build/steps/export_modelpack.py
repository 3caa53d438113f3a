"""``export-modelpack``: an artifact's model as an OCI image layout (spec/exports.md).

The layout of the CNCF's model specification: one layer a file, unpacked, so that a registry and the
artifact name a file by the same SHA-256. The artifact's manifest is a layer too; its digest is the
artifact's id.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path

from kolm_build.core import strict_json
from kolm_build.core.archive import MANIFEST
from kolm_build.core.quantisation_config import KEY
from kolm_build.core.request import StepRequest
from kolm_build.core.safetensors import PREFIX_BYTES, Header, header_length, parse_header
from kolm_build.steps._artifact import SOURCE, Artifact
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import output_folder
from kolm_build.steps._model_tree import WEIGHTS, Table
from kolm_build.steps._params import check_none
from kolm_build.steps._plain_weights import read_config

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHTS_TYPE = "application/vnd.cncf.model.weight.v1.raw"
SETTINGS_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
DOCUMENT_TYPE = "application/vnd.cncf.model.doc.v1.raw"

FILE_PATH = "org.cncf.model.filepath"
FILE_METADATA = "org.cncf.model.file.metadata+json"
NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"
LICENCES = "org.opencontainers.image.licenses"

_PRECISIONS: Mapping[str, str] = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
}
"""A safetensors dtype to the specification's name of it; what it has no name for is left out."""

_DOCUMENTS = ("LICENSE", "LICENSE.md", "LICENSE.txt", "README.md", MANIFEST)
_SCALES = ((10**12, "t"), (10**9, "b"), (10**6, "m"), (10**3, "k"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A file and the descriptor of its bytes."""

    file: Path
    descriptor: Table


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write the layout."""
    check_none(request.params)
    artifact, out = Artifact.read(request), output_folder(request)
    layers = _layers(artifact)
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for layer in layers:
        shutil.copyfile(layer.file, blobs / _hex(layer.descriptor))
    config = _keep(_config(artifact, layers), CONFIG_TYPE, blobs)
    manifest = _keep(_manifest(artifact, config, layers), MANIFEST_TYPE, blobs)
    named = manifest | {
        "artifactType": ARTIFACT_TYPE,
        "annotations": {NAME: artifact.manifest.name},
    }
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [named]}
    (out / "index.json").write_bytes(strict_json.dumps(index))
    (out / "oci-layout").write_bytes(strict_json.dumps({"imageLayoutVersion": "1.0.0"}))
    events.log(f"{len(layers)} layers, manifest {manifest['digest']}")


def _layers(artifact: Artifact) -> list[_Layer]:
    """The manifest of the artifact, then the model's files by path."""
    files = {path: artifact.model / path for path, _ in artifact.members}
    known = {path: member.sha256 for path, member in artifact.members}
    first = _layer(MANIFEST, artifact.manifest_file, artifact.id)
    return [first, *(_layer(path, file, known[path]) for path, file in sorted(files.items()))]


def _layer(path: str, file: Path, digest: str) -> _Layer:
    size = file.stat().st_size
    return _Layer(
        file=file,
        descriptor={
            "mediaType": _media_type(path),
            "digest": digest,
            "size": size,
            "annotations": {FILE_PATH: path, FILE_METADATA: _file_metadata(path, size)},
        },
    )


def _media_type(path: str) -> str:
    if path.endswith(".safetensors"):
        return WEIGHTS_TYPE
    return DOCUMENT_TYPE if path in _DOCUMENTS else SETTINGS_TYPE


def _file_metadata(path: str, size: int) -> str:
    """The attributes of a regular file of nobody in particular, at no particular time."""
    value = {
        "gid": 0,
        "mode": 0o644,
        "mtime": "1970-01-01T00:00:00Z",
        "name": path,
        "size": size,
        "typeflag": ord("0"),
        "uid": 0,
    }
    return strict_json.dumps(value).decode()


def _config(artifact: Artifact, layers: list[_Layer]) -> Table:
    config = read_config(artifact.model)
    header = _header(artifact.model / WEIGHTS)
    quantised = config.get(KEY)
    own: Table = {
        "architecture": "transformer",
        "format": "safetensors",
        "precision": ",".join(
            sorted({_PRECISIONS[one.dtype] for one in header.tensors if one.dtype in _PRECISIONS})
        ),
        "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
    }
    if quantised is None:
        own["paramSize"] = _shown(sum(prod(one.shape) for one in header.tensors))
    elif isinstance(quantised, dict):  # packed codes do not tell how many weights they are
        own["quantization"] = str(quantised.get("format", quantised.get("quant_method")))
    return {
        "descriptor": {
            "name": artifact.manifest.name,
            "family": str(config.get("model_type", "")),
            "licenses": artifact.manifest.licence.split(" AND "),
        },
        "config": own,
        "modelfs": {"type": "layers", "diffIds": [one.descriptor["digest"] for one in layers]},
    }


def _manifest(artifact: Artifact, config: Table, layers: list[_Layer]) -> Table:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": config,
        "layers": [layer.descriptor for layer in layers],
        "annotations": {
            LICENCES: artifact.manifest.licence,
            SOURCE: artifact.id,
            TITLE: artifact.manifest.name,
        },
    }


def _keep(value: Table, media_type: str, blobs: Path) -> Table:
    """The descriptor of the JSON blob `value`, which is among `blobs` afterwards."""
    data = strict_json.dumps(value)
    digest = sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _hex(descriptor: Table) -> str:
    return str(descriptor["digest"]).removeprefix("sha256:")


def _header(file: Path) -> Header:
    size = file.stat().st_size
    with file.open("rb") as handle:
        return parse_header(handle.read(header_length(handle.read(PREFIX_BYTES), size)), size)


def _shown(count: int) -> str:
    """A number of parameters as the specification writes it: one digit after the point."""
    for size, letter in _SCALES:
        if count >= size:
            tenths = count * 10 // size
            return f"{tenths // 10}.{tenths % 10}{letter}"
    return f"0.{count * 10 // 1000}k"
