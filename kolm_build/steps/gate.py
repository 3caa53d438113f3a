"""``gate``: what is not good enough goes no further (spec/evaluation.md).

A failed gate writes nothing, so nothing can be packaged or signed from it. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kolm_build.core import kscore, strict_json
from kolm_build.core.evaluation import Result, Totals
from kolm_build.core.fields import Fields
from kolm_build.core.kscore import KScore, Thresholds, Verdict
from kolm_build.core.request import StepRequest
from kolm_build.errors import GateFailedError, InvalidRecordError
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._evaluation import read_results, read_table
from kolm_build.steps._files import input_folder, output_folder

WORST_ROWS = 10
"""How many rows a failed gate shows."""


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write gate.json if the score of input `score` is high enough."""
    thresholds = thresholds_of(request)
    scored = KScore.from_value(read_table(input_folder(request, "score"), "kscore.json", "score"))
    results = read_results(input_folder(request, "evaluation"), "evaluation")
    check_evidence(scored, Totals.of(results))
    verdict = kscore.gate(scored, thresholds)
    if not verdict.passed:
        for line in worst(results):
            events.log(line)
        raise refusal(verdict)
    (output_folder(request) / "gate.json").write_bytes(strict_json.dumps(verdict.to_value()))


def thresholds_of(request: StepRequest) -> Thresholds:
    """What the recipe asks for; a floor that it does not name is 0."""
    fields = Fields(request.params)
    thresholds = Thresholds.read(fields)
    fields.done()
    return thresholds


def check_evidence(scored: KScore, totals: Totals) -> None:
    """Refuse a score that does not follow from the rows' results."""
    for name in ("rows", "correct", "verified"):
        claimed, counted = getattr(scored.evidence, name), getattr(totals, name)
        if claimed != counted:
            raise InvalidRecordError(
                "the score does not follow from the results",
                file="score/kscore.json",
                where=f"evidence.{name}",
                expected=f"{counted}, counted in evaluation/results.jsonl",
                actual=str(claimed),
            )


def worst(results: Iterable[Result]) -> Sequence[str]:
    """Lines about the worst rows: what the verifier refuses, then what is wrong."""
    bad = [result for result in results if not (result.correct and result.verified)]
    bad.sort(key=lambda result: (result.verified, result.correct))
    return [
        f"{'wrong' if result.verified else 'not acceptable'}: {result.id}"
        f" said {result.output[:60]!r}, right is {result.answer[:60]!r}"
        for result in bad[:WORST_ROWS]
    ]


def refusal(verdict: Verdict) -> GateFailedError:
    """The error that says which terms are too low, and by how much."""
    first = verdict.shortfalls[0].to_value()
    return GateFailedError(
        "the gate refuses the model: " + "; ".join(map(str, verdict.shortfalls)),
        where=str(first["term"]),
        expected=f"at least {first['minimum']}",
        actual=str(first["value"]),
        advice="Train on more or better rows, or lower the threshold under [gate] and say why.",
    )
