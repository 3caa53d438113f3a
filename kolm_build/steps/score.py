"""``score``: the K-score of a model as shipped (spec/kscore.md, spec/evaluation.md).

Only counted figures and the recipe's budgets enter. Standard library only.
"""

from __future__ import annotations

from kolm_build.core import kscore, strict_json
from kolm_build.core.evaluation import Summary
from kolm_build.core.fields import Fields
from kolm_build.core.kscore import Evidence
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._evaluation import read_summary, weight_bytes
from kolm_build.steps._files import input_folder, output_folder


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write kscore.json for `model`, from its `evaluation` and the one of `base` if given."""
    summary = read_summary(input_folder(request, "evaluation"), "evaluation")
    base = None
    if "base" in request.inputs:
        base = read_summary(input_folder(request, "base"), "base")
    size = weight_bytes(input_folder(request, "model"))
    scored = kscore.score(evidence_of(request, summary, base, size))
    for name in ("k", *kscore.TERMS):
        events.metric(name, str(getattr(scored, name)))
    out = output_folder(request)
    (out / "kscore.json").write_bytes(strict_json.dumps(scored.to_value()))


def evidence_of(
    request: StepRequest, summary: Summary, base: Summary | None, size_bytes: int
) -> Evidence:
    """The facts that the score follows from.

    Raises:
        InvalidRecordError: The evaluations are not of this model, or of the same rows; or a
            parameter is unknown or out of range.
    """
    if summary.weight_bytes != size_bytes:
        raise _mismatch("evaluation", "weight_bytes", size_bytes, summary.weight_bytes)
    if base is not None and base.totals.rows != summary.totals.rows:
        raise _mismatch("base", "rows", summary.totals.rows, base.totals.rows)
    fields = Fields(request.params)
    fields.text("device_name", default="")
    evidence = summary.to_evidence(base, fields)
    fields.done()
    return evidence


def _mismatch(role: str, where: str, expected: int, actual: int) -> InvalidRecordError:
    return InvalidRecordError(
        "the evaluation is of another model or of other rows",
        file=f"{role}/summary.json",
        where=where,
        expected=str(expected),
        actual=str(actual),
    )
