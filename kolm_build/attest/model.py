"""The model's folder in an artifact: what may be in it, and what it costs to run (spec/verify.md).

Operations and bytes of a request are counted again, from the configuration and the tensors'
shapes alone, by the formula of spec/evaluation.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod

from kolm_build.attest.evidence import FULL_SUMMARY, QUANTISATION, Claims, about, same
from kolm_build.core import attached_files, strict_json
from kolm_build.core.archive import MANIFEST
from kolm_build.core.cost import Sizes, Tensors, shapes
from kolm_build.core.fields import Fields
from kolm_build.core.manifest import Manifest, bits_per_weight
from kolm_build.core.safetensors import PREFIX_BYTES, TensorEntry, header_length, parse_header
from kolm_build.core.weight_names import EMBEDDING
from kolm_build.errors import InvalidRecordError

FOLDER = "model/"
CONFIG, TOKENIZER_CONFIG = "model/config.json", "model/tokenizer_config.json"
WEIGHTS_SUFFIX = ".safetensors"
WEIGHTS = "model/model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_BASE = (
    FOLDER + name for name in (attached_files.CONFIG, attached_files.TENSORS, attached_files.BASE)
)

COUNTED = "FLOPs and bytes of a request: from the configuration and the tensors' shapes"

_SUFFIXES = (".json", WEIGHTS_SUFFIX, ".jinja", ".txt", ".md", ".model")
_SUMMARY = "eval/summary.json"


def check_model(heads: Mapping[str, bytes], manifest: Manifest, claims: Claims) -> bool:
    """Whether the cost of a request could be counted again; everything else is checked.

    Args:
        heads: The configurations, and the first bytes of each safetensors file.
        manifest: What the artifact claims; its sizes are the files' sizes.
        claims: What the evaluation says of the model.

    Raises:
        EvidenceError: A file is not one that a model needs, runs code, or is malformed; or the
            evaluation's figures are not this model's.
    """
    config = _config(heads, CONFIG)
    if TOKENIZER_CONFIG in heads:
        _config(heads, TOKENIZER_CONFIG)
    tensors = _tensors(heads, manifest)
    _check_adapter(heads, manifest)
    with about(_SUMMARY):
        summary, requests = claims.evaluation.summary, claims.evaluation.requests
        parameters = shapes(config, tensors)
        same("parameters", summary.parameters, sum(map(prod, parameters.values())))
        same("weight_bytes", summary.weight_bytes, _weight_bytes(manifest))
        _check_bits(tensors, manifest, claims)
        if EMBEDDING not in parameters:
            return False
        sizes = Sizes.of(config, tensors)
        flops = _mean(sizes.flops(*one) for one in requests)
        same("flops_per_request", summary.flops_per_request, flops)
        moved = _mean(sizes.bytes_moved(*one) for one in requests)
        same("bytes_per_request", summary.bytes_per_request, moved)
    if claims.quantised is not None:
        full = claims.quantised.full
        with about(FULL_SUMMARY):
            flops = _mean(sizes.flops(*one) for one in full.requests)
            same("flops_per_request", full.summary.flops_per_request, flops)
    return True


def _check_adapter(heads: Mapping[str, bytes], manifest: Manifest) -> None:
    """The adapter beside the weights is whole, of this model, and as the manifest has it."""
    paths = (one.path for one in manifest.members if one.path.startswith(FOLDER))
    names = {path.removeprefix(FOLDER) for path in paths}
    with about(MANIFEST):
        same("adapter", manifest.adapter is not None, attached_files.has_adapter(names))
    if manifest.adapter is None:
        return
    from kolm_build.core.attached import read_attached  # 5 ms that most artifacts do not need

    with about(FOLDER.rstrip("/")):
        attached_files.check_complete(names)
    with about(ADAPTER_CONFIG):
        said = read_attached(strict_json.loads(heads[ADAPTER_CONFIG]))
    with about(ADAPTER_BASE):
        trained_on = Fields(strict_json.loads(heads[ADAPTER_BASE])).text("weights")
    base = _file_tensors(heads, manifest, WEIGHTS)
    beside = _file_tensors(heads, manifest, ADAPTER_WEIGHTS)
    with about(ADAPTER_WEIGHTS):
        found = {one.name: (one.dtype, one.shape) for one in beside}
        said.check({one.name: one.shape for one in base}, found)
    with about(MANIFEST):
        same("adapter.kind", manifest.adapter.kind, said.kind)
        same("adapter.base", manifest.adapter.base, trained_on)
        numbers = sum(prod(one.shape) for one in beside)
        same("adapter.parameters", manifest.adapter.parameters, numbers)


def _file_tensors(
    heads: Mapping[str, bytes], manifest: Manifest, path: str
) -> tuple[TensorEntry, ...]:
    """The tensors of one safetensors file, from its header."""
    with about(path):
        member = manifest.member(path)
        if member is None:
            raise InvalidRecordError("missing from the artifact")
        return _header(heads[path], member.size)


def _check_bits(tensors: Tensors, manifest: Manifest, claims: Claims) -> None:
    """The bits a weight of a quantised model, as the manifest and the report have them."""
    if manifest.quantisation is None or claims.quantised is None:
        return
    parameters = claims.evaluation.summary.parameters
    stored = sum(tensor.end - tensor.begin for tensor in tensors.values())
    with about(MANIFEST):
        want = bits_per_weight(stored, parameters)
        same("bits_per_weight", manifest.quantisation.bits_per_weight, want)
    with about(QUANTISATION):
        same("parameters", claims.quantised.parameters, parameters)
        same("tensor_bytes", claims.quantised.tensor_bytes, stored)


def _tensors(heads: Mapping[str, bytes], manifest: Manifest) -> Tensors:
    """The model's tensors by name, from every safetensors file's header."""
    found: dict[str, TensorEntry] = {}
    for member in manifest.members:
        if not member.path.startswith(FOLDER):
            continue
        with about(member.path):
            if not member.path.endswith(_SUFFIXES):
                raise InvalidRecordError(
                    "not a file that a model may hold", expected=" ".join(_SUFFIXES)
                )
            if member.path.endswith(WEIGHTS_SUFFIX):
                for tensor in _header(heads[member.path], member.size):
                    if found.setdefault(tensor.name, tensor) is not tensor:
                        raise InvalidRecordError("a tensor in two files", where=tensor.name)
    return found


def _weight_bytes(manifest: Manifest) -> int:
    """The size of the weights as shipped: of all their files."""
    paths = (each for each in manifest.members if each.path.startswith(FOLDER))
    return sum(each.size for each in paths if each.path.endswith(WEIGHTS_SUFFIX))


def _header(head: bytes, size: int) -> tuple[TensorEntry, ...]:
    end = PREFIX_BYTES + header_length(head[:PREFIX_BYTES], size)
    return parse_header(head[PREFIX_BYTES:end], size).tensors


def _config(heads: Mapping[str, bytes], path: str) -> Mapping[str, object]:
    """The configuration at `path`: a JSON object that names no code to run."""
    with about(path):
        if path not in heads:
            raise InvalidRecordError("the model has no configuration")
        try:
            value = json.loads(heads[path])
        except (ValueError, RecursionError) as error:
            raise InvalidRecordError("not JSON", actual=str(error)[:80]) from None
        if not isinstance(value, dict) or "auto_map" in value:
            raise InvalidRecordError("not an object, or it names code to run", where="auto_map")
    return value


def _mean(figures: Iterable[int]) -> int:
    """The mean, rounded up."""
    counted = list(figures)
    return -(-sum(counted) // len(counted))
