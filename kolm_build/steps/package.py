"""``package``: a model that passed its gate, its evidence and its story (spec/artifact.md).

The file is a function of the inputs alone: sorted members, fixed dates, no signature. Each member
is read once to be hashed and once to be copied, in pieces; nothing large is ever in memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from blake3 import blake3

from kolm_build.core import strict_json
from kolm_build.core.archive import MANIFEST, layout, order
from kolm_build.core.attached import read_attached
from kolm_build.core.attached_files import BASE, CONFIG, TENSORS, check_complete, has_adapter
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.fields import Fields
from kolm_build.core.kscore import KScore
from kolm_build.core.manifest import (
    AdapterClaim,
    Manifest,
    ManifestMember,
    Quantisation,
    bits_per_weight,
    kscore_summary,
)
from kolm_build.core.name import parse_label
from kolm_build.core.request import StepRequest
from kolm_build.core.safetensors import PREFIX_BYTES, header_length, parse_header, weights_record
from kolm_build.core.sbom import PATH as SBOM
from kolm_build.core.sbom import render_sbom
from kolm_build.core.story import Story, parse_story
from kolm_build.errors import GateFailedError, InvalidRecordError
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, output_folder

SUFFIX = ".kolm"
MODEL = "model/"
WEIGHTS = "model.safetensors"
PIECE_BYTES = 1 << 20

_EVAL: Mapping[str, tuple[str, str]] = {
    "eval/holdout.jsonl": ("holdout", "holdout.jsonl"),
    "eval/results.jsonl": ("evaluation", "results.jsonl"),
    "eval/summary.json": ("evaluation", "summary.json"),
    "eval/base-results.jsonl": ("base", "results.jsonl"),
    "eval/base-summary.json": ("base", "summary.json"),
    "eval/kscore.json": ("score", "kscore.json"),
    "eval/gate.json": ("gate", "gate.json"),
    "eval/full-results.jsonl": ("full", "results.jsonl"),
    "eval/full-summary.json": ("full", "summary.json"),
    "eval/full-kscore.json": ("full-score", "kscore.json"),
    "eval/quantisation.json": ("quantisation", "quantisation.json"),
}
"""The evidence: member path to the input's role and its file there."""

_QUANTISED = ("full", "full-score", "quantisation")
"""Roles that only a quantised model has, and it has them all."""

_OPTIONAL = ("base", *_QUANTISED)

Row = tuple[str, str, tuple[int, ...], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a member's bytes are.

    Attributes:
        entry: The member.
        content: Its file, or its bytes.
    """

    entry: ManifestMember
    content: Path | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor of the model.

    Attributes:
        row: Its name, dtype, shape and the BLAKE3 of its bytes.
        size_bytes: Their number.
    """

    row: Row
    size_bytes: int

    @property
    def name(self) -> str:
        """Its name."""
        return self.row[0]

    @property
    def dtype(self) -> str:
        """Its dtype, as the file names it."""
        return self.row[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.row[2]


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write NAME.kolm."""
    fields = Fields(request.params)
    name = fields.parsed("name", parse_label)
    fields.done()
    files = _files(request)
    _check_passed(files["eval/gate.json"])
    hashed = {path: _hash(path, file) for path, file in files.items()}
    story = parse_story(
        {
            path.removeprefix("build/"): file.read_bytes()
            for path, file in files.items()
            if path.startswith("build/")
        }
    )
    model = [source.entry for path, source in sorted(hashed.items()) if path.startswith(MODEL)]
    sbom = render_sbom(name, story, model)
    hashed[SBOM] = Source(entry=_entry(SBOM, [sbom]), content=sbom)
    tensors = dict(_model_tensors(files))
    whole = [tensor for held in tensors.values() for tensor in held]
    manifest = Manifest(
        name=name,
        members=tuple(hashed[path].entry for path in sorted(hashed, key=order)),
        weights_id=_weights_id(whole),
        numerics=story.numerics,
        licence=story.licence,
        kscore=_kscore(files["eval/kscore.json"]),
        quantisation=_quantisation(files, story, whole),
        adapter=_adapter(files, story, tensors),
    )
    data = manifest.encode()
    destination = output_folder(request) / f"{name}{SUFFIX}"
    with destination.open("xb") as out:
        write(out, hashed | {MANIFEST: Source(entry=_entry(MANIFEST, [data]), content=data)})
    events.log(f"{len(hashed)} members, {destination.stat().st_size} bytes")


def write(out: BinaryIO, sources: Mapping[str, Source]) -> None:
    """Write the container of `sources` to `out`."""
    plan = layout(source.entry.member for source in sources.values())
    for piece in plan.placed:
        out.write(piece.lead)
        for part in _pieces(sources[piece.member.path].content):
            out.write(part)
    out.write(plan.tail)


def _files(request: StepRequest) -> dict[str, Path]:
    """Every member but the two that are made here: its path, and the file it comes from."""
    files = dict(_below(MODEL, input_folder(request, "model")))
    files |= _below("build/", input_folder(request, "story"))
    for path, (role, name) in _EVAL.items():
        if role in _OPTIONAL and role not in request.inputs:
            continue
        files[path] = input_folder(request, role) / name
        if not files[path].is_file():
            raise InvalidRecordError("a file is missing", where=f"inputs.{role}", expected=name)
    return files


def _below(prefix: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The files below `folder` as members below `prefix`."""
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            yield prefix + path.relative_to(folder).as_posix(), path
        elif not stat.S_ISDIR(mode):
            raise InvalidRecordError(
                "an artifact holds files, no links", where=path.relative_to(folder).as_posix()
            )


def _check_passed(file: Path) -> None:
    verdict = Fields(strict_json.loads(file.read_bytes()))
    if not verdict.flag("passed"):
        raise GateFailedError("the gate was not passed: nothing is packaged", file="gate.json")


def _hash(path: str, file: Path) -> Source:
    """The member at `path` with the bytes of `file`, read once."""
    return Source(entry=_entry(path, _pieces(file)), content=file)


def _entry(path: str, pieces: Iterable[bytes]) -> ManifestMember:
    plain, fast, checksum, size = sha256(), blake3(), 0, 0
    for piece in pieces:
        plain.update(piece)
        fast.update(piece)
        checksum = crc32(piece, checksum)
        size += len(piece)
    return ManifestMember(
        path=path,
        size=size,
        sha256=f"sha256:{plain.hexdigest()}",
        b3=f"b3:{fast.hexdigest()}",
        crc32=checksum,
    )


def _pieces(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _kscore(file: Path) -> Mapping[str, str]:
    return kscore_summary(KScore.from_value(strict_json.loads(file.read_bytes())))


def _quantisation(
    files: Mapping[str, Path], story: Story, tensors: Iterable[Tensor]
) -> Quantisation | None:
    """What the manifest says of a quantised model; None where nothing quantised it.

    Raises:
        InvalidRecordError: The evidence is of a quantised model and the story is not, or the
            other way round.
    """
    params = story.params("quantise")
    given = [path for path, (role, _) in _EVAL.items() if role in _QUANTISED and path in files]
    if params is None and not given:
        return None
    if params is None or len(given) != sum(role in _QUANTISED for role, _ in _EVAL.values()):
        raise InvalidRecordError(
            "evidence and story disagree on whether the model is quantised",
            where="inputs",
            expected=", ".join(_QUANTISED),
            actual=", ".join(given) or "none of them",
        )
    summary = strict_json.loads(files["eval/summary.json"].read_bytes())
    return Quantisation(
        scheme=str(params["scheme"]),
        method=str(params["method"]),
        bits_per_weight=bits_per_weight(
            sum(tensor.size_bytes for tensor in tensors), Fields(summary).integer("parameters")
        ),
        full_kscore=_kscore(files["eval/full-kscore.json"]),
    )


def _weights_id(tensors: Iterable[Tensor]) -> str:
    rows = [tensor.row for tensor in tensors]
    if not rows:
        raise InvalidRecordError("the model has no weights", expected="model.safetensors")
    return str(Digest.of_record(weights_record(rows), RecordKind.WEIGHTS))


def _adapter(
    files: Mapping[str, Path], story: Story, tensors: Mapping[str, Sequence[Tensor]]
) -> AdapterClaim | None:
    """What the manifest says of the adapter beside the weights; None where there is none.

    Raises:
        InvalidRecordError: The files do not belong together, or the story tells of no adapter, or
            of one that is not there.
    """
    names = {path.removeprefix(MODEL) for path in files if path.startswith(MODEL)}
    if has_adapter(names) != (story.params("attach") is not None):
        raise InvalidRecordError(
            "model and story disagree on whether an adapter is beside the weights",
            where="inputs.model",
            expected="the files of an adapter and a derivation of the step attach, or neither",
            actual=", ".join(sorted(names)),
        )
    if not has_adapter(names):
        return None
    check_complete(names)
    base, beside = tensors[MODEL + WEIGHTS], tensors[MODEL + TENSORS]
    said = read_attached(strict_json.loads(files[MODEL + CONFIG].read_bytes()))
    said.check(
        {tensor.name: tensor.shape for tensor in base},
        {tensor.name: (tensor.dtype, tensor.shape) for tensor in beside},
    )
    trained_on = Fields(strict_json.loads(files[MODEL + BASE].read_bytes())).text("weights")
    if trained_on != _weights_id(base):
        raise InvalidRecordError(
            "the adapter was trained on other weights",
            file=BASE,
            where="weights",
            expected=_weights_id(base),
            actual=trained_on,
        )
    return AdapterClaim(
        kind=said.kind, parameters=sum(prod(tensor.shape) for tensor in beside), base=trained_on
    )


def _model_tensors(files: Mapping[str, Path]) -> Iterator[tuple[str, list[Tensor]]]:
    """The tensors of each weights file of the model, by its path."""
    for path, file in files.items():
        if path.startswith(MODEL) and path.endswith(".safetensors"):
            try:
                yield path, list(_tensors(file))
            except InvalidRecordError as error:
                raise error.in_file(path) from None


def _tensors(file: Path) -> Iterator[Tensor]:
    """Each tensor of a safetensors file with the BLAKE3 of its bytes."""
    size = file.stat().st_size
    with file.open("rb", buffering=0) as handle:
        fd = handle.fileno()
        length = header_length(os.pread(fd, PREFIX_BYTES, 0), size)
        header = parse_header(os.pread(fd, length, PREFIX_BYTES), size)
        for tensor in header.tensors:
            hasher = blake3()
            for at in range(tensor.begin, tensor.end, PIECE_BYTES):
                count = min(PIECE_BYTES, tensor.end - at)
                hasher.update(os.pread(fd, count, header.data_start + at))
            row = tensor.name, tensor.dtype, tensor.shape, hasher.digest()
            yield Tensor(row=row, size_bytes=tensor.end - tensor.begin)
