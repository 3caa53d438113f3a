"""Score and gate decide on the evidence, with the standard library alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from kolm_build.core import strict_json
from kolm_build.core.evaluation import Result, Summary, Totals
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._evaluation import read_results, read_summary, write_evaluation
from kolm_build.steps.gate import WORST_ROWS, worst
from tests.steps_ml.calling import run_step
from tests.support.models import ROOT, tiny_llama

BUDGETS = {
    "size_budget_bytes": 400_000,
    "latency_budget_us": 1_000,
    "cost_budget_microusd": 1_000,
    "device_name": "a device",
    "device_flops_per_s": 10**11,
    "device_bytes_per_s": 10**10,
    "device_microusd_per_hour": 100_000,
}


def result(number: int, *, correct: bool = True, verified: bool = True) -> Result:
    return Result(
        id=f"sha256:{number:064x}",
        answer="bone",
        output="bone" if correct else "lung",
        correct=correct,
        label_output=None,
        label_correct=None,
        verified=verified,
        prompt_tokens=10,
        output_tokens=2,
    )


def evaluation(folder, results, *, weight_bytes):
    folder.mkdir(parents=True)
    summary = Summary(
        metric="exact",
        totals=Totals.of(results),
        parameters=90_688,
        weight_bytes=weight_bytes,
        flops_per_request=10**6,
        bytes_per_request=10**6,
    )
    write_evaluation(folder, results, summary)
    return folder


@pytest.fixture
def model(tmp_path):
    return tiny_llama(tmp_path / "model")


@pytest.fixture
def judged(tmp_path, model):
    """An evaluation with 8 of 10 right and 9 acceptable, and its score."""
    results = [result(n, correct=n > 1, verified=n > 0) for n in range(10)]
    folder = evaluation(tmp_path / "evaluation", results, weight_bytes=size_of(model))
    inputs = {"evaluation": folder, "model": model}
    return folder, run_step("score", tmp_path, inputs=inputs, params=BUDGETS).folder()


def size_of(model):
    return (model / "model.safetensors").stat().st_size


def test_the_files_of_an_evaluation_read_as_they_were_written(tmp_path):
    """EVAL-11, EVAL-12."""
    results = tuple(result(n, correct=n % 2 == 0) for n in range(5))
    folder = evaluation(tmp_path / "evaluation", results, weight_bytes=7)
    assert read_results(folder, "evaluation") == results
    summary = read_summary(folder, "evaluation")
    assert (summary.totals.rows, summary.totals.correct, summary.weight_bytes) == (5, 3, 7)
    for line in (folder / "results.jsonl").read_bytes().splitlines():
        assert strict_json.dumps(strict_json.loads(line)) == line


def test_a_bad_result_is_refused_with_its_row(tmp_path):
    folder = evaluation(tmp_path / "evaluation", [result(1)], weight_bytes=7)
    with (folder / "results.jsonl").open("ab") as file:
        file.write(b'{"id":"x"}\n')
    with pytest.raises(InvalidRecordError) as caught:
        read_results(folder, "evaluation")
    assert caught.value.file == "evaluation/results.jsonl"
    assert (caught.value.where or "").startswith("row 2")


def test_the_score_follows_from_the_evidence(judged):
    value = strict_json.loads((judged[1] / "kscore.json").read_bytes())
    assert value["terms"] == {
        "accuracy": "0.8000",
        "size": "1.0000",
        "latency": "1.0000",
        "cost": "1.0000",
        "coverage": "0.9000",
    }
    assert value["k"] == "0.9050"
    assert value["base_accuracy"] is None


def test_the_base_is_scored_beside_the_model(tmp_path, model):
    tuned = evaluation(tmp_path / "tuned", [result(1), result(2)], weight_bytes=size_of(model))
    base = evaluation(
        tmp_path / "base", [result(1), result(2, correct=False)], weight_bytes=size_of(model)
    )
    inputs = {"evaluation": tuned, "base": base, "model": model}
    out = run_step("score", tmp_path, inputs=inputs, params=BUDGETS).folder()
    assert strict_json.loads((out / "kscore.json").read_bytes())["base_accuracy"] == "0.5000"


def test_an_evaluation_of_another_model_is_refused(tmp_path, model):
    """EVAL-13."""
    other = evaluation(tmp_path / "other", [result(1)], weight_bytes=size_of(model) + 1)
    inputs = {"evaluation": other, "model": model}
    refusal = run_step("score", tmp_path, inputs=inputs, params=BUDGETS).refusal()
    assert refusal["where"] == "weight_bytes"
    assert refusal["file"] == "evaluation/summary.json"


def test_a_base_evaluated_on_other_rows_is_refused(tmp_path, model):
    """EVAL-13."""
    tuned = evaluation(tmp_path / "tuned", [result(1), result(2)], weight_bytes=size_of(model))
    base = evaluation(tmp_path / "base", [result(1)], weight_bytes=size_of(model))
    inputs = {"evaluation": tuned, "base": base, "model": model}
    refusal = run_step("score", tmp_path, inputs=inputs, params=BUDGETS).refusal()
    assert refusal["file"] == "base/summary.json"


def test_an_unknown_budget_is_refused(tmp_path, judged, model):
    inputs = {"evaluation": judged[0], "model": model}
    params = BUDGETS | {"energy_budget_j": 1}
    refusal = run_step("score", tmp_path, inputs=inputs, params=params).refusal()
    assert refusal["where"] == "energy_budget_j"


def test_a_gate_that_is_passed_says_what_it_asked_for(tmp_path, judged):
    inputs = {"evaluation": judged[0], "score": judged[1]}
    params = {"k_min": "0.905", "accuracy_min": "0.80", "coverage_min": "0"}
    out = run_step("gate", tmp_path, inputs=inputs, params=params).folder()
    value = strict_json.loads((out / "gate.json").read_bytes())
    assert value["passed"] is True
    assert value["k_min"] == "0.905"


def test_a_failed_gate_names_each_term_and_the_worst_rows(tmp_path, judged):
    """EVAL-15."""
    inputs = {"evaluation": judged[0], "score": judged[1]}
    params = {"k_min": "0.95", "accuracy_min": "0.9", "coverage_min": "0.9"}
    ran = run_step("gate", tmp_path, inputs=inputs, params=params)
    refusal = ran.refusal()
    assert refusal["code"] == "gate.failed"
    assert "k 0.9050 is 0.045 below 0.95" in refusal["reason"]
    assert "accuracy 0.8000 is 0.1 below 0.9" in refusal["reason"]
    assert "coverage" not in refusal["reason"]
    first, second = ran.logged()
    assert first.startswith(f"not acceptable: sha256:{0:064x}")
    assert second.startswith(f"wrong: sha256:{1:064x} said 'lung', right is 'bone'")
    assert list(ran.outputs["out"].iterdir()) == []


def test_a_score_that_does_not_follow_from_the_results_is_refused(tmp_path, judged, model):
    """EVAL-14."""
    results = [replace(one, correct=True) for one in read_results(judged[0], "evaluation")]
    better = evaluation(tmp_path / "better", results, weight_bytes=size_of(model))
    inputs = {"evaluation": better, "score": judged[1]}
    refusal = run_step("gate", tmp_path, inputs=inputs, params={"k_min": "0"}).refusal()
    assert refusal["where"] == "evidence.correct"


def test_no_more_than_the_worst_rows_are_shown():
    assert len(worst([result(n, correct=False) for n in range(50)])) == WORST_ROWS


@pytest.mark.parametrize("step", ["score", "gate", "_verifier", "_evaluation"])
def test_the_light_steps_need_the_standard_library_alone(step):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kolm_build.steps.{step}; "
        "sys.exit(any('site-packages' in (getattr(m, '__file__', '') or '') "
        "for m in sys.modules.values()))"
    )
    done = subprocess.run([sys.executable, "-S", "-I", "-B", "-c", code], check=False)
    assert done.returncode == 0
