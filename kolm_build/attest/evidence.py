"""The evidence in an artifact: every claim recomputed from what it follows from (spec/verify.md).

The rows give the split and their own ids, the results give the counts, the counts and the
recipe's budgets give the K-score, and the score and the recipe's thresholds give the verdict.
Budgets and thresholds come from the derivations, whose digests are checked too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Self, TypeVar

from kolm_build.attest.container import as_verification
from kolm_build.core import cbor, strict_json
from kolm_build.core.evaluation import Result, Summary, Totals
from kolm_build.core.fields import Fields
from kolm_build.core.kscore import KScore, Thresholds, gate
from kolm_build.core.manifest import Manifest, kscore_summary
from kolm_build.core.plain_blake3 import blake3
from kolm_build.core.sbom import PATH as SBOM
from kolm_build.core.sbom import render_sbom
from kolm_build.core.split import MODULUS, is_holdout
from kolm_build.core.story import (
    DERIVATIONS,
    Story,
    locked_contents,
    needed_derivations,
    parse_story,
)
from kolm_build.errors import EvidenceError, InvalidRecordError

T = TypeVar("T")

BUILD, MODEL = "build/", "model/"
HOLDOUT, RESULTS, SUMMARY = "eval/holdout.jsonl", "eval/results.jsonl", "eval/summary.json"
BASE_RESULTS, BASE_SUMMARY = "eval/base-results.jsonl", "eval/base-summary.json"
FULL_RESULTS, FULL_SUMMARY = "eval/full-results.jsonl", "eval/full-summary.json"
KSCORE, FULL_KSCORE, GATE = "eval/kscore.json", "eval/full-kscore.json", "eval/gate.json"
QUANTISATION = "eval/quantisation.json"
DERIVATION_CONTEXT = "kolm_build 2026 derivation v1"
ENVIRONMENT_CONTEXT = "kolm_build 2026 environment v1"

EVIDENCED = (
    "container and manifest: every byte of the file is accounted for",
    "members: size and SHA-256",
    "derivations: each named by its digest, none missing that another one needs",
    "lock: it names the code, environment and contents of every derivation",
    "results: one a held-out row, each judged again by its output; totals",
    "K-score: from the totals and the budgets of the derivation",
    "gate: from the K-score and the thresholds of the derivation",
    "bill of materials: from the lock and the model's files",
    "model: no code, weights' headers, number of parameters and bytes",
)
NOT_EVIDENCED = (
    "that the model gives these outputs: `kolm rebuild` runs it again",
    "that no training row is like a held-out one: `kolm rebuild` makes the rows again",
    "that the lock is the recipe's: `kolm rebuild` instantiates both",
    "BLAKE3 and CRC-32 of the members, and the weights id: `kolm rebuild` computes them",
    "sizes and costs of the untuned base",
)
QUANTISED_EVIDENCED = (
    "full precision: one result a held-out row, each judged again; its K-score",
    "quantisation: scheme and method from the derivation, bits a weight from the headers",
)
QUANTISED_NOT_EVIDENCED = (
    "sizes and bytes a request of the model in full precision",
    "outliers and worst layers in the report of the quantisation: `kolm rebuild` makes it again",
)
ADAPTER_EVIDENCED = (
    "adapter: its tensors are those beside this model's layers, their number as claimed",
)
ADAPTER_NOT_EVIDENCED = (
    "that the adapter was trained on these weights: `kolm rebuild` computes their id",
)
SPLIT = "split: every held-out row is on its side by its own key"
VERIFIED = "coverage: each output checked again by the recipe's verifier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What holds, and what the weights have still to show.

    Attributes:
        evidenced: What was recomputed and is as claimed.
        not_evidenced: What cannot be recomputed here, and what would.
        evaluation: What the model did.
        quantised: What is said of the model before it was quantised; None where it was not.
    """

    evidenced: tuple[str, ...]
    not_evidenced: tuple[str, ...]
    evaluation: Evaluation
    quantised: Quantised | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """What is said of a quantised model.

    Attributes:
        full: What it did before.
        parameters: Its weights, as the report of its quantisation says.
        tensor_bytes: The bytes of its tensors, likewise.
    """

    full: Evaluation
    parameters: int
    tensor_bytes: int


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
        same("id", made.id, f"sha256:{sha256(cbor.encode(record)).hexdigest()}")
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Who judges an output again, by the rules of spec/evaluation.md.

    Attributes:
        metric: ``exact`` or ``label``.
        accepts: The recipe's verifier, where it is one that is safe to run on a stranger's word;
            None for a regular expression or a schema.
    """

    metric: str
    accepts: Callable[[str], bool] | None

    @classmethod
    def of(cls, story: Story) -> Self:
        """The judge that the derivations of the step `evaluate` call for: all the same."""
        found = story.all_params("evaluate")
        if not found or any(params != found[0] for params in found):
            with about("build/derivations"):
                raise InvalidRecordError(
                    "the evaluations differ or are missing", actual=str(len(found))
                )
        labels = frozenset(str(found[0].get("labels", "")).split("\n")) - {""}
        verifier = found[0].get("verifier", "none")
        accepts: Callable[[str], bool] | None = None
        if verifier == "none":
            accepts = _anything
        elif verifier == "labels":
            accepts = labels.__contains__
        return cls(metric=str(found[0].get("metric", "exact")), accepts=accepts)

    def check(self, result: Result, row: Row) -> None:
        """Refuse a judgement that does not follow from the output."""
        said, want, label = result.output.strip(), row.answer.strip(), result.label_output
        right = None if label is None else label == row.answer
        same("answer", result.answer, row.answer)
        same("label_correct", result.label_correct, right)
        same("correct", result.correct, right is True if self.metric == "label" else said == want)
        if self.accepts is not None:
            same("verified", result.verified, self.accepts(said))


def _anything(_output: str) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """An evaluation that holds.

    Attributes:
        summary: Its summary.
        requests: Prompt and output tokens of each row.
    """

    summary: Summary
    requests: tuple[tuple[int, int], ...]


def check_evidence(files: Mapping[str, bytes], manifest: Manifest) -> Claims:
    """Recompute every claim of an artifact that does not need the weights.

    Args:
        files: The members below ``build/``, ``eval/`` and ``sbom/``.
        manifest: What the artifact claims.

    Raises:
        EvidenceError: A claim does not follow, or what it follows from is missing.
    """
    with about("build"):
        told = _below(files, BUILD)
        story = parse_story(told)
        _check_derivations(told, story)
        _check_lock(story)
    with about("manifest.json"):
        same("numerics", manifest.numerics, story.numerics)
        same("licence", manifest.licence, story.licence)
        same("adapter", manifest.adapter is not None, story.params("attach") is not None)
    rows = _rows(files)
    judge = Judge.of(story)
    evaluation = _check_evaluation(files, (RESULTS, SUMMARY), rows, judge)
    base = None
    if BASE_RESULTS in files or BASE_SUMMARY in files:
        base = _check_evaluation(files, (BASE_RESULTS, BASE_SUMMARY), rows, judge)
    before = base.summary if base else None
    score = _check_score(files, KSCORE, evaluation.summary, before, story)
    with about("manifest.json"):
        same("kscore", dict(manifest.kscore), kscore_summary(score))
    quantised = _check_quantisation(files, manifest, story, rows, before)
    _check_gate(files, score, story)
    _check_sbom(files, manifest, story)
    optional = {SPLIT: _check_split(rows.values(), story), VERIFIED: judge.accepts is not None}
    return Claims(
        evidenced=(
            *EVIDENCED,
            *(QUANTISED_EVIDENCED if quantised else ()),
            *(ADAPTER_EVIDENCED if manifest.adapter else ()),
            *(name for name, done in optional.items() if done),
        ),
        not_evidenced=(
            *NOT_EVIDENCED,
            *(QUANTISED_NOT_EVIDENCED if quantised else ()),
            *(ADAPTER_NOT_EVIDENCED if manifest.adapter else ()),
            *(name for name, done in optional.items() if not done),
        ),
        evaluation=evaluation,
        quantised=quantised,
    )


def _check_quantisation(
    files: Mapping[str, bytes],
    manifest: Manifest,
    story: Story,
    rows: Mapping[str, Row],
    base: Summary | None,
) -> Quantised | None:
    """What the model did before it was quantised, where it is; what is said of both holds."""
    params = story.params("quantise")
    claimed = manifest.quantisation
    with about("manifest.json"):
        same("quantisation", claimed is not None, params is not None)
    if claimed is None or params is None:
        for path in (FULL_RESULTS, FULL_SUMMARY, FULL_KSCORE, QUANTISATION):
            with about(path):
                if path in files:
                    raise InvalidRecordError("evidence of a quantisation that is not told of")
        return None
    paths = (FULL_RESULTS, FULL_SUMMARY)
    full = _check_evaluation(files, paths, rows, Judge.of(story))
    score = _check_score(files, FULL_KSCORE, full.summary, base, story)
    with about("manifest.json"), _under("quantisation"):
        same("full_kscore", dict(claimed.full_kscore), kscore_summary(score))
        same("scheme", claimed.scheme, params.get("scheme"))
        same("method", claimed.method, params.get("method"))
    with about(QUANTISATION):
        report = Fields(strict_json.loads(_file(files, QUANTISATION)))
        same("scheme", report.text("scheme"), params.get("scheme"))
        same("method", report.text("method"), params.get("method"))
        return Quantised(
            full=full,
            parameters=report.integer("parameters"),
            tensor_bytes=report.integer("tensor_bytes"),
        )


def _rows(files: Mapping[str, bytes]) -> Mapping[str, Row]:
    """The held-out rows by id; at least one, each once."""
    rows: dict[str, Row] = {}
    for row in _lines(files, HOLDOUT, Row.from_value):
        with about(HOLDOUT):
            if rows.setdefault(row.id, row) is not row:
                raise InvalidRecordError("a row is there twice", where=row.id)
    return rows


def _check_derivations(files: Mapping[str, bytes], story: Story) -> None:
    """Every derivation is named by its digest, and has every derivation it needs beside it."""
    there = set()
    for path, data in files.items():
        if path.startswith(DERIVATIONS):
            digest = blake3(data, context=DERIVATION_CONTEXT)
            same(path, path.removeprefix(DERIVATIONS), f"{digest.hex()}.cbor")
            there.add(digest)
    for record in story.derivations:
        for raw in needed_derivations(record):
            if raw not in there:
                raise InvalidRecordError("a derivation is missing", where=raw.hex())


def _check_lock(story: Story) -> None:
    """The lock names the code, the environment and the contents of every derivation."""
    code, trees, environment = story.locked
    digest = blake3(environment, context=ENVIRONMENT_CONTEXT)
    for record in story.derivations:
        step = str(record["step"])
        same(f"code of {step}", record.get("code"), code.get(step))
        if record.get("environment") is not None:
            same(f"environment of {step}", record["environment"], digest)
        for raw in locked_contents(record):
            if raw not in trees:
                raise InvalidRecordError("a content that is not locked", where=raw.hex())


def _check_split(rows: Iterable[Row], story: Story) -> bool:
    """Whether the split could be recomputed; every row is then on the held-out side."""
    with about(HOLDOUT):
        params = story.data
        if params is None:
            return False
        seed, modulus = str(params.get("split_seed", "")), params.get("modulus", MODULUS)
        if type(modulus) is not int:
            raise InvalidRecordError("not a modulus", actual=repr(modulus)[:80])
        for row in rows:
            key = row.group if params.get("group") else row.prompt
            if not is_holdout(key, seed, modulus):
                raise InvalidRecordError("a training row among the held-out rows", where=row.id)
    return True


def _check_evaluation(
    files: Mapping[str, bytes], paths: tuple[str, str], rows: Mapping[str, Row], judge: Judge
) -> Evaluation:
    """One evaluation, each row judged again and the summary recounted."""
    path, summary_path = paths
    with about(summary_path):
        summary = Summary.from_value(strict_json.loads(_file(files, summary_path)))
        same("metric", summary.metric, judge.metric)
    results = tuple(_lines(files, path, Result.from_value))
    with about(path):
        if {result.id for result in results} != rows.keys() or len(results) != len(rows):
            raise InvalidRecordError(
                "not one result a held-out row",
                expected=f"{len(rows)} rows",
                actual=f"{len(results)} results",
            )
        for result in results:
            with _under(result.id):
                judge.check(result, rows[result.id])
    with about(summary_path):
        for name, counted in Totals.of(results).to_value().items():
            same(name, getattr(summary.totals, name), counted)
    requests = tuple((each.prompt_tokens, each.output_tokens) for each in results)
    return Evaluation(summary=summary, requests=requests)


def _check_score(
    files: Mapping[str, bytes], path: str, summary: Summary, base: Summary | None, story: Story
) -> KScore:
    """The K-score at `path`, computed again from the counts and the budgets."""
    with about(path):
        found = KScore.from_value(strict_json.loads(_file(files, path)))
        want = summary.to_evidence(base, Fields(_params(story, "score"))).to_value()
        for name, value in found.evidence.to_value().items():
            same(f"evidence.{name}", value, want[name])
    return found


def _check_gate(files: Mapping[str, bytes], score: KScore, story: Story) -> None:
    """The verdict, given again, and that it is a pass."""
    with about(GATE):
        verdict = gate(score, Thresholds.read(Fields(_params(story, "gate"))))
        same("verdict", strict_json.loads(_file(files, GATE)), verdict.to_value())
        if not verdict.passed:
            raise InvalidRecordError(
                "the gate was not passed", actual="; ".join(map(str, verdict.shortfalls))
            )


def _params(story: Story, step: str) -> Mapping[str, str | int]:
    """The parameters of the derivations of `step`, one of which has to be there."""
    params = story.params(step)
    if params is None:
        raise InvalidRecordError(f"no derivation of the step {step}", where=f"{BUILD}{DERIVATIONS}")
    return params


def _check_sbom(files: Mapping[str, bytes], manifest: Manifest, story: Story) -> None:
    with about(SBOM):
        model = [member for member in manifest.members if member.path.startswith(MODEL)]
        if _file(files, SBOM) != render_sbom(manifest.name, story, model):
            raise InvalidRecordError("not the bill of materials of this lock and model")


def _lines(files: Mapping[str, bytes], path: str, read: Callable[[object], T]) -> Iterator[T]:
    """Each line of a file of canonical JSON lines, as `read` reads it."""
    with about(path):
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


def same(where: str, found: object, want: object) -> None:
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
def about(path: str) -> Iterator[None]:
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
