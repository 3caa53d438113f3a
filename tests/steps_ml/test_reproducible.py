"""The whole computing chain, twice, in processes that share nothing: the same bytes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from kolm_build.core import strict_json
from tests.steps_ml.calling import LABELS, files_of, run_step, write_rows
from tests.support.models import tiny_llama, tiny_rows

pytestmark = [pytest.mark.ml, pytest.mark.xdist_group("tiny-training")]

TRAINING = {
    "learning_rate": "5e-3",
    "epochs": 10,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "max_length": 128,
    "warmup_steps": 5,
    "lora_dropout": "0.01",
    "compute_dtype": "fp32",
}
ASKING = {
    "max_new_tokens": 6,
    "batch_size": 8,
    "labels": "\n".join(LABELS),
    "verifier": "labels",
    "metric": "label",
}
SURROUNDINGS = (
    {"PYTHONHASHSEED": "1", "TZ": "UTC", "LANG": "C"},
    {"PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "2"},
)


def chain(root, env, portable=None, **training):
    """Train, merge, evaluate below `root`: every step that ran."""
    model = tiny_llama(root / "inputs" / "model")
    rows = tiny_rows(root / "inputs" / "rows").read_text().splitlines()
    pairs = [(one["text"], one["ward"]) for one in map(json.loads, rows)]
    train = write_rows(root / "inputs" / "train", "train.jsonl", pairs[:100])
    holdout = write_rows(root / "inputs" / "holdout", "holdout.jsonl", pairs[100:])
    steps = {}
    runs = root / "runs"
    runs.mkdir()
    steps["sft"] = run_step(
        "sft",
        runs,
        inputs={"model": model, "train": train},
        params=TRAINING | training,
        env=env,
        portable=portable,
    )
    steps["merge"] = run_step(
        "merge",
        runs,
        inputs={"model": model, "adapter": steps["sft"].folder("adapter")},
        env=env,
        portable=portable,
    )
    steps["evaluate"] = run_step(
        "evaluate",
        runs,
        inputs={"model": steps["merge"].folder(), "holdout": holdout},
        params=ASKING,
        env=env,
        portable=portable,
    )
    return steps


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    roots = [tmp_path_factory.mktemp(name) / name for name in ("here", "a-longer-elsewhere")]
    with ThreadPoolExecutor(len(roots)) as pool:
        return list(pool.map(chain, roots, SURROUNDINGS))


@pytest.mark.parametrize(
    ("step", "output"),
    [("sft", "adapter"), ("sft", "trace"), ("merge", "out"), ("evaluate", "out")],
)
def test_surroundings_change_no_byte(chains, step, output):
    """NAT-5, NAT-2."""
    here, elsewhere = (files_of(steps[step].folder(output)) for steps in chains)
    assert here.keys() == elsewhere.keys()
    for name, data in here.items():
        assert data == elsewhere[name], name


def test_the_adapter_has_two_canonical_files(chains):
    """SFT-8, SFT-9, ADPT-1: no path, version or time; beside them what it was trained on."""
    files = files_of(chains[0]["sft"].folder("adapter"))
    assert sorted(files) == [
        *("adapter_config.json", "adapter_model.safetensors", "base.json"),
    ]
    config = strict_json.loads(files["adapter_config.json"])
    assert strict_json.dumps(config) == files["adapter_config.json"]
    assert sorted(config) == [
        *("bias", "fan_in_fan_out", "inference_mode", "lora_alpha", "peft_type", "r"),
        *("target_modules", "task_type", "use_dora", "use_rslora"),
    ]
    assert config["target_modules"] == sorted(config["target_modules"])
    assert "lm_head" not in config["target_modules"]


def test_the_trace_holds_every_step_exactly(chains):
    """SFT-10."""
    lines = files_of(chains[0]["sft"].folder("trace"))["trace.jsonl"].splitlines()
    steps = [strict_json.loads(line) for line in lines]
    assert [step["step"] for step in steps] == list(range(1, 10 * 13 + 1))
    losses = [float.fromhex(step["loss"]) for step in steps]
    assert all(
        float(step["loss_decimal"]) == round(loss, 4)
        for step, loss in zip(steps, losses, strict=True)
    )
    assert losses[-1] < losses[0] / 4


def test_progress_is_told_step_by_step(chains):
    progress = [event for event in chains[0]["sft"].events if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 10 * 13
    assert progress[-1]["unit"] == "step"
    assert "loss" in progress[-1]


def test_the_trainer_leaves_nothing_behind(chains):
    """SFT-7."""
    assert list(chains[0]["sft"].scratch.rglob("*")) == []


def test_the_task_is_learnt_and_judged(chains):
    """EVAL-11, EVAL-12: the totals are those of the rows."""
    files = files_of(chains[0]["evaluate"].folder())
    summary = strict_json.loads(files["summary.json"])
    results = [strict_json.loads(line) for line in files["results.jsonl"].splitlines()]
    assert summary["rows"] == len(results) == 28
    for name in ("correct", "label_correct", "verified"):
        assert summary[name] == sum(result[name] for result in results)
    assert summary["metric"] == "label"
    assert summary["correct"] > 21
    assert summary["verified"] > 21
    model = chains[0]["merge"].folder() / "model.safetensors"
    assert summary["weight_bytes"] == model.stat().st_size


@pytest.fixture(scope="module")
def portable_chains(tmp_path_factory):
    """The chain in portable-1: as fast as it goes, and by the plainest kernels on one thread."""
    from kolm_build.numerics import portable

    kinds = ((2, portable.isas()[0]), (1, "baseline"))
    roots = [tmp_path_factory.mktemp(f"portable-{isa}") / "root" for _, isa in kinds]
    return [
        chain(root, env, kind, max_steps=6, compute_dtype="bf16")
        for root, env, kind in zip(roots, SURROUNDINGS, kinds, strict=True)
    ]


@pytest.mark.parametrize(
    ("step", "output"),
    [("sft", "adapter"), ("sft", "trace"), ("merge", "out"), ("evaluate", "out")],
)
def test_neither_threads_nor_instruction_set_change_a_byte(portable_chains, step, output):
    """NUM-100, NUM-105."""
    one, other = (files_of(steps[step].folder(output)) for steps in portable_chains)
    assert one == other
