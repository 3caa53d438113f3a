"""The evidence in an artifact: every claim recomputed from what it follows from (spec/verify.md).

The rows give the split and their own ids, the results give the counts, the counts and the
recipe's budgets give the K-score, and the score and the recipe's thresholds give the verdict.
Budgets and thresholds come from the derivations, whose digests are checked too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from hashlib import sha256
from math import prod
from typing import Self, TypeVar

from kolm_build.attest.container import as_verification
from kolm_build.core import cbor, strict_json
from kolm_build.core.fields import Fields
from kolm_build.core.kscore import Evidence, KScore, Thresholds, gate
from kolm_build.core.manifest import Manifest, ManifestMember, kscore_summary
from kolm_build.core.plain_blake3 import blake3
from kolm_build.core.safetensors import PREFIX_BYTES, header_length, parse_header
from kolm_build.core.sbom import PATH as SBOM
from kolm_build.core.sbom import render_sbom
from kolm_build.core.split import MODULUS, is_holdout
from kolm_build.core.story import DERIVATIONS, Story, needed_derivations, parse_story
from kolm_build.errors import EvidenceError, InvalidRecordError

T = TypeVar("T")

BUILD, MODEL = "build/", "model/"
CONFIG, TOKENIZER_CONFIG = "model/config.json", "model/tokenizer_config.json"
WEIGHTS_SUFFIX = ".safetensors"
HOLDOUT, RESULTS, SUMMARY = "eval/holdout.jsonl", "eval/results.jsonl", "eval/summary.json"
BASE_RESULTS, BASE_SUMMARY = "eval/base-results.jsonl", "eval/base-summary.json"
KSCORE, GATE = "eval/kscore.json", "eval/gate.json"
EVALUATION_FORMAT = "evaluation/1"
DERIVATION_CONTEXT = "kolm_build 2026 derivation v1"
_COUNTS = ("rows", "correct", "label_correct", "verified", "prompt_tokens", "output_tokens")

_MODEL_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".md")
_BUDGETS = (
    *("size_budget_bytes", "latency_budget_us", "cost_budget_microusd"),
    *("device_flops_per_s", "device_bytes_per_s", "device_microusd_per_hour"),
)
_EVIDENCED = (
    "every byte of the file: container, manifest, SHA-256 of each member",
    "attestations: about this manifest, by the keys they name",
    "derivations: each named by its digest, none missing that another one needs",
    "results: one a held-out row, counts as in the summaries",
    "K-score: from the counts, the weights' size and the budgets of the derivation",
    "gate: from the K-score and the thresholds of the derivation",
    "bill of materials: from the lock and the model's files",
)
_NOT_EVIDENCED = (
    "BLAKE3 and CRC-32 of the members, and the weights id (kolm import checks them)",
    "that the model gives these outputs, and its counted FLOPs and bytes (kolm rebuild)",
    "that no training row is like a held-out one: the rows are not in the file (kolm rebuild)",
    "that the lock belongs to the recipe (kolm lock --check, kolm rebuild)",
)
_SPLIT = "split: every held-out row is on its side by its own key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the evidence shows.

    Attributes:
        evidenced: What was recomputed and is as claimed.
        not_evidenced: What cannot be recomputed here, and what would.
        parameters: How many parameters the evaluation counted; the weights show whether it did.
    """

    evidenced: tuple[str, ...]
    not_evidenced: tuple[str, ...]
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A held-out row: what is asked, what is right, and what it is grouped by."""

    id: str
    prompt: str
    answer: str
    group: str

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row of a line, strict; its id follows from the rest."""
        fields = Fields(value)
        messages = fields.records("messages", _message)
        if not messages or messages[-1][0] != "user":
            raise InvalidRecordError("the last message is the user's", where="messages")
        made = cls(
            id=fields.text("id"),
            prompt=messages[-1][1],
            answer=fields.text("answer"),
            group=fields.text("group"),
        )
        fields.done()
        spelled = [{"role": role, "content": content} for role, content in messages]
        record = {"answer": made.answer, "group": made.group, "messages": spelled}
        _same("id", made.id, f"sha256:{sha256(cbor.encode(record)).hexdigest()}")
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the model did with a held-out row."""

    id: str
    answer: str
    output: str
    correct: bool
    label_output: str | None
    label_correct: bool | None
    verified: bool
    prompt_tokens: int
    output_tokens: int

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The result of a line, strict."""
        fields = Fields(value)
        made = cls(
            id=fields.text("id"),
            answer=fields.text("answer"),
            output=fields.text("output"),
            correct=fields.flag("correct"),
            label_output=fields.nullable("label_output", str),
            label_correct=fields.nullable("label_correct", bool),
            verified=fields.flag("verified"),
            prompt_tokens=fields.integer("prompt_tokens"),
            output_tokens=fields.integer("output_tokens"),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What an evaluation counted, as its summary says."""

    metric: str
    rows: int
    correct: int
    label_correct: int
    verified: int
    prompt_tokens: int
    output_tokens: int
    parameters: int
    weight_bytes: int
    flops_per_request: int
    bytes_per_request: int

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The summary in a ``summary.json``, strict."""
        fields = Fields(value)
        _same("format", fields.text("format"), EVALUATION_FORMAT)
        made = cls(
            metric=fields.text("metric"),
            **{field.name: fields.integer(field.name) for field in dataclass_fields(cls)[1:]},
        )
        fields.done()
        return made

    @property
    def right(self) -> int:
        """The rows that are right by the metric."""
        return self.label_correct if self.metric == "label" else self.correct

    def to_evidence(self, base: Summary | None, budgets: Mapping[str, object]) -> Evidence:
        """What the K-score of this evaluation follows from."""
        wanted = Fields({name: budgets.get(name) for name in _BUDGETS})
        return Evidence(
            rows=self.rows,
            correct=self.right,
            verified=self.verified,
            base_correct=None if base is None else base.right,
            weight_bytes=self.weight_bytes,
            flops_per_request=self.flops_per_request,
            bytes_per_request=self.bytes_per_request,
            **{name: wanted.integer(name) for name in _BUDGETS},
        )


def check_evidence(files: Mapping[str, bytes], manifest: Manifest) -> Findings:
    """Recompute every claim of an artifact that does not need the weights.

    Args:
        files: The members below ``build/``, ``eval/`` and ``sbom/``.
        manifest: What the artifact claims.

    Raises:
        EvidenceError: A claim does not follow, or what it follows from is missing.
    """
    with _about("build"):
        told = _below(files, BUILD)
        story = parse_story(told)
        _check_story(told, story)
    with _about("manifest.json"):
        _same("numerics", manifest.numerics, story.numerics)
        _same("licence", manifest.licence, story.licence)
    rows = _rows(files)
    split = _check_split(rows.values(), story)
    counts = _check_evaluation(files, (RESULTS, SUMMARY), rows, story)
    base = None
    if BASE_RESULTS in files or BASE_SUMMARY in files:
        base = _check_evaluation(files, (BASE_RESULTS, BASE_SUMMARY), rows, story)
    score = _check_score(files, manifest, counts, base, story)
    _check_gate(files, score, story)
    _check_sbom(files, manifest, story)
    return Findings(
        evidenced=(*_EVIDENCED, *([_SPLIT] if split else [])),
        not_evidenced=(*_NOT_EVIDENCED, *([] if split else [f"{_SPLIT}: no dataset step"])),
        parameters=counts.parameters,
    )


def check_model(heads: Mapping[str, bytes], manifest: Manifest, findings: Findings) -> None:
    """Check the model's folder: what may be in it, its configuration, its weights' headers.

    Args:
        heads: The configurations, and the first bytes of each safetensors file.
        manifest: What the artifact claims; its sizes are the files' sizes.
        findings: What the evaluation counted.

    Raises:
        EvidenceError: A file is not one that a model needs, runs code, or is malformed.
    """
    for path in (CONFIG, TOKENIZER_CONFIG):
        with _about(path):
            _check_config(heads.get(path), needed=path == CONFIG)
    parameters = 0
    for member in manifest.members:
        if member.path.startswith(MODEL):
            with _about(member.path):
                parameters += _parameters(member, heads)
    with _about(SUMMARY):
        _same("parameters", findings.parameters, parameters)


def _parameters(member: ManifestMember, heads: Mapping[str, bytes]) -> int:
    """The number of parameters in a file of the model."""
    if not member.path.endswith(_MODEL_SUFFIXES):
        raise InvalidRecordError(
            "not a file that a model may hold", expected=" ".join(_MODEL_SUFFIXES)
        )
    if not member.path.endswith(WEIGHTS_SUFFIX):
        return 0
    head = heads[member.path]
    end = PREFIX_BYTES + header_length(head[:PREFIX_BYTES], member.size)
    header = parse_header(head[PREFIX_BYTES:end], member.size)
    return sum(prod(tensor.shape) for tensor in header.tensors)


def _check_config(data: bytes | None, *, needed: bool) -> None:
    """Refuse a configuration that is not a JSON object, or names code to run."""
    if data is None:
        if needed:
            raise InvalidRecordError("the model has no configuration")
        return
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError("not JSON", actual=str(error)[:80]) from None
    if not isinstance(value, dict) or "auto_map" in value:
        raise InvalidRecordError("not an object, or it names code to run", where="auto_map")


def _rows(files: Mapping[str, bytes]) -> Mapping[str, Row]:
    """The held-out rows by id; at least one, each once."""
    rows: dict[str, Row] = {}
    for row in _lines(files, HOLDOUT, Row.from_value):
        with _about(HOLDOUT):
            if rows.setdefault(row.id, row) is not row:
                raise InvalidRecordError("a row is there twice", where=row.id)
    return rows


def _check_story(files: Mapping[str, bytes], story: Story) -> None:
    """Every derivation is named by its digest, and has every derivation it needs beside it."""
    there = set()
    for path, data in files.items():
        if path.startswith(DERIVATIONS):
            digest = blake3(data, context=DERIVATION_CONTEXT)
            _same(path, path.removeprefix(DERIVATIONS), f"{digest.hex()}.cbor")
            there.add(digest)
    for record in story.derivations:
        for raw in needed_derivations(record):
            if raw not in there:
                raise InvalidRecordError("a derivation is missing", where=raw.hex())


def _check_split(rows: Iterable[Row], story: Story) -> bool:
    """Whether the split could be recomputed; every row is then on the held-out side."""
    params = story.params("dataset")
    if params is None:
        return False
    seed, modulus = str(params.get("split_seed", "")), params.get("modulus", MODULUS)
    with _about(HOLDOUT):
        if type(modulus) is not int:
            raise InvalidRecordError("not a modulus", actual=repr(modulus)[:80])
        for row in rows:
            key = row.group if params.get("group") else row.prompt
            if not is_holdout(key, seed, modulus):
                raise InvalidRecordError("a training row among the held-out rows", where=row.id)
    return True


def _check_evaluation(
    files: Mapping[str, bytes], paths: tuple[str, str], rows: Mapping[str, Row], story: Story
) -> Summary:
    """The summary of one evaluation, recounted from its results."""
    results, summary = paths
    counts: Counter[str] = Counter()
    with _about(summary):
        found = Summary.from_value(strict_json.loads(_file(files, summary)))
        for params in story.all_params("evaluate"):
            _same("metric", found.metric, params.get("metric", "exact"))
    seen = set()
    for result in _lines(files, results, Result.from_value):
        with _about(results):
            counts.update(_counted(result, rows))
            seen.add(result.id)
    with _about(results):
        _same("rows", counts["rows"], len(rows))
        _same("distinct rows", len(seen), len(rows))
    with _about(summary):
        for name in _COUNTS:
            _same(name, getattr(found, name), counts[name])
    return found


def _counted(result: Result, rows: Mapping[str, Row]) -> dict[str, int]:
    """What one result adds to the summary's counts."""
    row = rows.get(result.id)
    if row is None:
        raise InvalidRecordError("a result for a row that is not held out", where=result.id)
    with _under(result.id):
        _same("answer", result.answer, row.answer)
        label = None if result.label_output is None else result.label_output == row.answer
        _same("label_correct", result.label_correct, label)
    return {
        "rows": 1,
        "correct": result.correct,
        "label_correct": bool(result.label_correct),
        "verified": result.verified,
        "prompt_tokens": result.prompt_tokens,
        "output_tokens": result.output_tokens,
    }


def _check_score(
    files: Mapping[str, bytes],
    manifest: Manifest,
    counts: Summary,
    base: Summary | None,
    story: Story,
) -> KScore:
    """The K-score, computed again from the counts and the budgets."""
    weights = [each.size for each in manifest.members if each.path.endswith(WEIGHTS_SUFFIX)]
    with _about(SUMMARY):
        _same("weight_bytes", counts.weight_bytes, sum(weights))
    with _about(KSCORE):
        found = KScore.from_value(strict_json.loads(_file(files, KSCORE)))
        budgets = story.params("score")
        if budgets is None:
            raise InvalidRecordError("no derivation of the step score", where="build/derivations")
        want = counts.to_evidence(base, budgets)
        for name, value in want.to_value().items():
            _same(f"evidence.{name}", found.evidence.to_value()[name], value)
    with _about("manifest.json"):
        _same("kscore", dict(manifest.kscore), kscore_summary(found))
    return found


def _check_gate(files: Mapping[str, bytes], score: KScore, story: Story) -> None:
    """The verdict, given again, and that it is a pass."""
    with _about(GATE):
        params = story.params("gate")
        if params is None:
            raise InvalidRecordError("no derivation of the step gate", where="build/derivations")
        verdict = gate(score, _thresholds(params))
        _same("verdict", strict_json.loads(_file(files, GATE)), verdict.to_value())
        if not verdict.passed:
            raise InvalidRecordError(
                "the gate was not passed", actual="; ".join(map(str, verdict.shortfalls))
            )


def _thresholds(params: Mapping[str, object]) -> Thresholds:
    fields = Fields(params)
    return Thresholds.parse(
        k=fields.text("k_min"),
        accuracy=fields.text("accuracy_min"),
        coverage=fields.text("coverage_min"),
    )


def _check_sbom(files: Mapping[str, bytes], manifest: Manifest, story: Story) -> None:
    with _about(SBOM):
        model = [member for member in manifest.members if member.path.startswith(MODEL)]
        if _file(files, SBOM) != render_sbom(manifest.name, story, model):
            raise InvalidRecordError("not the bill of materials of this lock and model")


def _lines(files: Mapping[str, bytes], path: str, read: Callable[[object], T]) -> Iterator[T]:
    """Each line of a file of canonical JSON lines, as `read` reads it."""
    with _about(path):
        lines = _file(files, path).split(b"\n")
        if lines.pop():
            raise InvalidRecordError("the last line is cut off")
        for number, line in enumerate(lines, 1):
            with _under(f"line {number}"):
                value = strict_json.loads(line)
                if strict_json.dumps(value) != line:
                    raise InvalidRecordError("not canonical JSON")
                made = read(value)
            yield made


def _file(files: Mapping[str, bytes], path: str) -> bytes:
    if path not in files:
        raise InvalidRecordError("missing from the artifact", where=path)
    return files[path]


def _below(files: Mapping[str, bytes], folder: str) -> dict[str, bytes]:
    return {
        path.removeprefix(folder): data for path, data in files.items() if path.startswith(folder)
    }


def _same(where: str, found: object, want: object) -> None:
    """Refuse a claim that is not what follows; `true` is not 1."""
    if type(found) is not type(want) or found != want:
        raise InvalidRecordError(
            "a claim that does not follow from the evidence",
            where=where,
            expected=ascii(want)[:200],
            actual=ascii(found)[:200],
        )


def _message(value: object) -> tuple[str, str]:
    fields = Fields(value)
    made = fields.text("role"), fields.text("content")
    fields.done()
    if made[0] not in {"system", "user", "assistant"}:
        raise InvalidRecordError("unknown role", where="role", actual=ascii(made[0])[:80])
    return made


@contextmanager
def _about(path: str) -> Iterator[None]:
    """What goes wrong inside is evidence that does not hold, found in `path`."""
    try:
        yield
    except InvalidRecordError as error:
        raise as_verification(error, EvidenceError).in_file(path) from None


@contextmanager
def _under(where: str) -> Iterator[None]:
    try:
        yield
    except InvalidRecordError as error:
        raise error.under(where) from None
