"""``evaluate``: the model answers the held-out rows and is judged by them (spec/evaluation.md).

The rows' results are the evidence that every figure of a K-score is computed from again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kolm_build.core import strict_json
from kolm_build.core.request import StepRequest
from kolm_build.numerics import native
from kolm_build.runtime.load import Model, load
from kolm_build.steps._conversations import Conversation, read_conversations
from kolm_build.steps._counts import Architecture, mean_counts
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, output_folder
from kolm_build.steps._generate import Output, outputs_of
from kolm_build.steps._params import EvaluateParams
from kolm_build.steps._verifier import Verifier

FORMAT = "evaluation/1"

Result = Mapping[str, object]


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write results.jsonl, one line a row of `holdout`, and summary.json."""
    params = EvaluateParams.parse(request.params)
    verifier = Verifier.parse(params.verifier, params.labels)
    native.apply(request.numerics)
    rows = read_conversations(input_folder(request, "holdout") / "holdout.jsonl")
    model = load(input_folder(request, "model"))
    outputs = outputs_of(
        model, rows, params, lambda done: events.progress(done, len(rows), unit="row")
    )
    results = [
        result_of(row, output, metric=params.metric, verifier=verifier)
        for row, output in zip(rows, outputs, strict=True)
    ]
    summary = summary_of(results, model, params)
    for name in ("correct", "label_correct", "verified"):
        events.metric(name, str(summary[name]))
    out = output_folder(request)
    (out / "results.jsonl").write_bytes(b"".join(strict_json.dumps(one) + b"\n" for one in results))
    (out / "summary.json").write_bytes(strict_json.dumps(summary) + b"\n")


def result_of(row: Conversation, output: Output, *, metric: str, verifier: Verifier) -> Result:
    """What is kept of one row: everything that its judgement follows from."""
    said, want = output.text.strip(), row.answer.strip()
    label_correct = None if output.label is None else output.label == want
    return {
        "answer": row.answer,
        "correct": label_correct is True if metric == "label" else said == want,
        "id": row.id,
        "label_correct": label_correct,
        "label_output": output.label,
        "output": output.text,
        "output_tokens": output.output_tokens,
        "prompt_tokens": output.prompt_tokens,
        "verified": verifier.accepts(said),
    }


def summary_of(results: Sequence[Result], model: Model, params: EvaluateParams) -> Result:
    """The totals of `results`, and what a request costs."""
    architecture = Architecture.of(model.network)
    requests = [(int(str(one["prompt_tokens"])), int(str(one["output_tokens"]))) for one in results]
    return {
        "format": FORMAT,
        "metric": params.metric,
        "rows": len(results),
        **{
            name: sum(one[name] is True for one in results)
            for name in ("correct", "label_correct", "verified")
        },
        "prompt_tokens": sum(prompt for prompt, _ in requests),
        "output_tokens": sum(output for _, output in requests),
        "parameters": architecture.parameters,
        "weight_bytes": architecture.weight_bytes,
        **mean_counts(architecture, requests),
    }
