"""``evaluate``: the model answers the held-out rows and is judged by them (spec/evaluation.md).

The rows' results are the evidence that every figure of a K-score is computed from again.
"""

from __future__ import annotations

from collections.abc import Sequence

from kolm_build.core.evaluation import Result, Summary, Totals
from kolm_build.core.numerics import PORTABLE
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidDataError
from kolm_build.numerics.apply import applied_as
from kolm_build.runtime.loading import Model, load
from kolm_build.steps._conversations import Conversation, read_conversations
from kolm_build.steps._counts import Architecture, mean_counts
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._evaluation import weight_bytes, write_evaluation
from kolm_build.steps._files import input_folder, output_folder
from kolm_build.steps._generate import Output, outputs_of
from kolm_build.steps._params import EvaluateParams
from kolm_build.steps._verifier import Verifier


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run, within=applied_as)


def run(request: StepRequest, events: Events) -> None:
    """Write results.jsonl, one line a row of `holdout`, and summary.json."""
    params = EvaluateParams.parse(request.params)
    verifier = Verifier.parse(params.verifier, params.labels)
    rows = read_conversations(input_folder(request, "holdout") / "holdout.jsonl")
    check_answers(rows, params)
    folder = input_folder(request, "model")
    model = load(folder)
    outputs = outputs_of(
        model,
        rows,
        params,
        lambda done: events.progress(done, len(rows), unit="row"),
        mixed=request.numerics.cls == PORTABLE,
    )
    results = [
        result_of(row, output, metric=params.metric, verifier=verifier)
        for row, output in zip(rows, outputs, strict=True)
    ]
    summary = summary_of(results, model, metric=params.metric, weight_bytes=weight_bytes(folder))
    for name in ("correct", "label_correct", "verified"):
        events.metric(name, str(getattr(summary.totals, name)))
    write_evaluation(output_folder(request), results, summary)


def check_answers(rows: Sequence[Conversation], params: EvaluateParams) -> None:
    """Refuse an answer that no label can meet, where labels decide what is right (EVAL-19).

    Raises:
        InvalidDataError: An answer is none of the labels.
    """
    if params.metric != "label":
        return
    for number, row in enumerate(rows, 1):
        if row.answer not in params.labels:
            raise InvalidDataError(
                "an answer outside the label set",
                file="holdout.jsonl",
                where=f"row {number} ({row.id}), answer",
                expected="one of " + ", ".join(map(repr, params.labels)),
                actual=repr(row.answer),
                advice='Add it to labels, mend the row, or use metric = "exact".',
            )


def result_of(row: Conversation, output: Output, *, metric: str, verifier: Verifier) -> Result:
    """What `output` is worth: texts are compared without the space around them."""
    said, want = output.text.strip(), row.answer.strip()
    label_correct = None if output.label is None else output.label == row.answer
    return Result(
        id=row.id,
        answer=row.answer,
        output=output.text,
        correct=label_correct is True if metric == "label" else said == want,
        label_output=output.label,
        label_correct=label_correct,
        verified=verifier.accepts(said),
        prompt_tokens=output.prompt_tokens,
        output_tokens=output.output_tokens,
    )


def summary_of(
    results: Sequence[Result], model: Model, *, metric: str, weight_bytes: int
) -> Summary:
    """The totals of `results`, and what a request costs."""
    architecture = Architecture.of(model.network)
    requests = [(result.prompt_tokens, result.output_tokens) for result in results]
    return Summary(
        metric=metric,
        totals=Totals.of(results),
        parameters=architecture.parameters,
        weight_bytes=weight_bytes,
        **mean_counts(architecture, requests),
    )
