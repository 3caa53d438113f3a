"""What every stage keeps, whatever it minimises and whatever it changes."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re

import pytest
import torch

from kolm_build.core.catalogue.table import OBJECTIVES
from kolm_build.core.fields import Fields
from kolm_build.runtime.loading import load
from kolm_build.steps.table import STEPS
from tests.steps_ml.calling import (
    LABELS,
    feedback_row,
    files_of,
    pair_row,
    run_step,
    write_lines,
    write_rows,
)
from tests.support.models import tiny_llama, tiny_rows

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

TRAINED = sorted(one.id for one in OBJECTIVES.values() if one.trains)
SETTINGS = {"compute_dtype": "fp32", "learning_rate": "5e-3", "max_steps": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    rows = [json.loads(line) for line in tiny_rows(root / "rows").read_text().splitlines()][:8]
    pairs = [
        pair_row(at, one["text"], one["ward"], next(w for w in LABELS if w != one["ward"]))
        for at, one in enumerate(rows, 1)
    ]
    feedback = [
        feedback_row(at, one["text"], one["ward"], good=at % 2 == 0)
        for at, one in enumerate(rows, 1)
    ]
    answers = [(one["text"], one["ward"]) for one in rows]
    return {
        "model": tiny_llama(root / "model"),
        "answers": write_rows(root / "answers", "train.jsonl", answers),
        "pairs": write_lines(root / "pairs", "train.jsonl", pairs),
        "feedback": write_lines(root / "feedback", "train.jsonl", feedback),
    }


def trained(step, inputs, root, rows, **params):
    outputs = ("model", "metrics", "trace") if params.get("adapter") == "full" else None
    return run_step(
        step,
        root,
        inputs={"model": inputs["model"], "train": inputs[rows]},
        params=SETTINGS | params,
        outputs=outputs,
        portable=(1, None),
    )


def metrics(ran):
    header, *lines = (ran.folder("metrics") / "metrics.csv").read_text().splitlines()
    return header.split(","), [line.split(",") for line in lines]


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_reference_is_the_model_as_the_stage_begins(adapter, inputs, tmp_path):
    """ALG-5: so the first loss of dpo is log 2, and the second is not."""
    names, rows = metrics(trained("dpo", inputs, tmp_path, "pairs", adapter=adapter))
    losses = [float(row[names.index("loss")]) for row in rows]
    margins = [float(row[names.index("margin")]) for row in rows]
    assert losses[0] == pytest.approx(math.log(2))
    assert margins[0] == 0
    assert margins[1] != 0


@pytest.mark.parametrize("adapter", ["lora", "full", "moe-lora"])
def test_the_reference_can_be_asked_at_any_time(adapter, inputs):
    """ALG-5: and afterwards the trained model is back."""
    from kolm_build.steps.adapters.table import ADAPTERS

    change = ADAPTERS[adapter](Fields({}))
    network = change.attach(load(inputs["model"]).network)
    change.remember(network)
    ids = torch.tensor([[1, 70, 80, 90]])
    with torch.no_grad():
        before = network(input_ids=ids).logits
        for one in network.parameters():
            if one.requires_grad:
                one.add_(0.05)
        trained = network(input_ids=ids).logits
        with change.reference(network):
            assert torch.equal(network(input_ids=ids).logits, before)
        assert torch.equal(network(input_ids=ids).logits, trained)
    assert not torch.equal(trained, before)


def objective(name, **params):
    """The objective `name`, with those of `params` that it knows."""
    row = OBJECTIVES[name]
    known = {one.name for one in row.parameters}
    module = importlib.import_module(f"kolm_build.steps.{STEPS[row.step].module}")
    return module.TAKE(Fields({key: value for key, value in params.items() if key in known}))


def asks_for_the_reference(kind):
    """Whether a method of `kind`, its own or inherited, makes the network the reference."""
    methods = [
        one
        for base in kind.__mro__
        for name, one in vars(base).items()
        if inspect.isfunction(one) and name != "referred"  # which many have and few call
    ]
    return any(re.search(r"\.(reference|referred)\(", inspect.getsource(one)) for one in methods)


@pytest.mark.parametrize("name", TRAINED)
def test_an_objective_says_whether_it_asks_for_the_reference(name):
    """ALG-5."""
    made = objective(name, beta="0.1")
    assert made.needs_reference == asks_for_the_reference(type(made))


@pytest.mark.parametrize("name", TRAINED)
def test_an_objective_says_whether_it_looks_at_the_network_before_a_step(name):
    """Whoever writes another `prepare` below one that does not look has to say it anew."""
    kind = type(objective(name, beta="0.1"))
    assert kind.asks_network or first_with(kind, "prepare") is first_with(kind, "asks_network")


def first_with(kind, name):
    """The class that gives `kind` its `name`."""
    return next(base for base in kind.__mro__ if name in vars(base))


@pytest.mark.parametrize("name", TRAINED)
def test_an_objective_uses_rows_again_as_often_as_its_iterations_say(name):
    """RECIPE-27, ALG-8: and without that parameter never."""
    asked = "iterations" in {one.name for one in OBJECTIVES[name].parameters}
    assert objective(name, iterations=3).repeats == (3 if asked else 1)


def test_a_policy_without_a_divergence_asks_for_no_reference():
    """ALG-5."""
    assert objective("grpo", beta="0.1").needs_reference
    assert not objective("grpo", beta="0").needs_reference


@pytest.mark.parametrize(
    "case", [("sft", "answers", 0), ("dpo", "pairs", 0), ("kto", "feedback", 1)]
)
def test_all_weights_are_copied_only_for_an_objective_that_asks_for_the_reference(
    case, inputs, tmp_path, monkeypatch
):
    """ALG-5."""
    from kolm_build.steps.adapters.full import Full

    step, rows, times = case
    remember, seen = Full.remember, []
    monkeypatch.setattr(
        Full, "remember", lambda self, network: seen.append(1) or remember(self, network)
    )
    trained(step, inputs, tmp_path, rows, adapter="full").folder("model")
    assert len(seen) == times


def test_a_reference_that_nobody_asked_to_remember_is_an_error_of_the_program(inputs):
    """ALG-5: not the trained model in its place."""
    from kolm_build.steps.adapters.full import Full

    change = Full.take(Fields({}))
    network = change.attach(load(inputs["model"]).network)
    with pytest.raises(AssertionError, match="says so"):
        change.reference(network)


def test_the_metrics_are_a_table_of_exact_numbers(inputs, tmp_path):
    """ALG-6: they are those of the trace."""
    ran = trained("dpo", inputs, tmp_path, "pairs")
    data = (ran.folder("metrics") / "metrics.csv").read_bytes()
    names, rows = metrics(ran)
    assert names == ["step", "loss", "learning_rate", "grad_norm", "margin", "accuracy"]
    assert [row[0] for row in rows] == ["1", "2"]
    assert b"\r" not in data
    assert data.endswith(b"\n")
    traced = (ran.folder("trace") / "trace.jsonl").read_text().splitlines()
    for row, line in zip(rows, map(json.loads, traced), strict=True):
        for name in ("loss", "learning_rate", "grad_norm"):
            text = row[names.index(name)]
            assert float(text) == float.fromhex(line[name])
            assert repr(float(text)) == text


def test_every_weight_is_trained_in_float32_and_rounded_once(inputs, tmp_path):
    """ALG-7: all other files are the base's."""
    from safetensors.torch import load_file

    exact = trained("sft", inputs, tmp_path / "a", "answers", adapter="full").folder("model")
    coarse = trained(
        "sft", inputs, tmp_path / "b", "answers", adapter="full", weights_dtype="bf16"
    ).folder("model")
    one, other = (load_file(folder / "model.safetensors") for folder in (exact, coarse))
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}
    for name, tensor in one.items():
        assert torch.equal(other[name], tensor.to(torch.bfloat16)), name
    base = files_of(inputs["model"])
    for name, data in files_of(exact).items():
        assert (name == "model.safetensors") != (data == base[name]), name


def test_every_weight_in_fewer_bits_is_refused(inputs, tmp_path):
    """ALG-7."""
    ran = trained("sft", inputs, tmp_path, "answers", adapter="full", compute_dtype="bf16")
    assert ran.refusal()["where"] == "compute_dtype"


def test_rows_that_are_used_again_come_in_whole_steps():
    """ALG-8: another order in every epoch; the same whoever asks for the epoch first."""
    from kolm_build.steps._objective import RepeatedRows

    def epoch(number):
        sampler = RepeatedRows(rows=7, size=3, repeats=2, seed=5)
        sampler.set_epoch(number)
        return list(sampler)

    first = epoch(0)
    assert len(first) == 12 == len(RepeatedRows(rows=7, size=3, repeats=2, seed=5))
    assert first[:3] == first[3:6]
    assert first[6:9] == first[9:]
    assert len(set(first)) == 6
    assert epoch(1) != first == epoch(0)


@pytest.mark.parametrize(("step", "rows"), [("sft", "answers"), ("dpo", "pairs")])
def test_a_row_is_read_alone_and_without_padding(step, rows, inputs, tmp_path, monkeypatch):
    """ALG-9."""
    from transformers import LlamaForCausalLM

    forward, seen = LlamaForCausalLM.forward, []

    def watched(self, **given):
        seen.append((given["input_ids"].shape[0], bool(given["attention_mask"].all())))
        return forward(self, **given)

    monkeypatch.setattr(LlamaForCausalLM, "forward", watched)
    trained(step, inputs, tmp_path, rows).folder("adapter")
    assert set(seen) == {(1, True)}


def test_kto_measures_from_the_other_rows_answers(inputs):
    """PREF-5: each prompt with the next row's answer, the last with the first's."""
    from types import SimpleNamespace

    from kolm_build.steps._sequences import Continuation, log_probability
    from kolm_build.steps.objectives.kto import Kto, mismatched

    rows = [
        SimpleNamespace(sequence=Continuation(ids=(1, 70 + at, 80 + at, 90 + at), start=2))
        for at in range(3)
    ]
    mixed = [mismatched(rows[at], rows[(at + 1) % 3]) for at in range(3)]
    assert mixed[2].ids == (1, 72, 80, 90)
    network = load(inputs["model"]).network
    made = Kto(beta=0.1, good_weight=1, bad_weight=1)

    def point(reference):
        made._change = SimpleNamespace(reference=reference)
        with torch.no_grad():
            return made.point(network, rows).item()

    def scaled(by):
        from contextlib import contextmanager

        @contextmanager
        def reference(one):
            one.lm_head.weight.data.mul_(by)
            yield
            one.lm_head.weight.data.div_(by)

        return reference

    with torch.no_grad():
        policy = sum(log_probability(network, one).item() for one in mixed) / 3
        with scaled(2.0)(network):
            other = sum(log_probability(network, one).item() for one in mixed) / 3
    assert point(scaled(2.0)) == pytest.approx(max(0.0, policy - other), rel=1e-4, abs=1e-6)
    assert point(scaled(1.0)) == 0


def test_bco_measures_from_the_mean_of_all_rewards_so_far():
    """PREF-5."""
    from kolm_build.steps.objectives.bco import Bco

    made = Bco(beta=0.5)
    given = iter([1.0, 3.0, 8.0])
    made.ratio = lambda _network, _example: torch.tensor(next(given))
    assert made.point(None, [None, None]).item() == pytest.approx(1.0)
    assert made.point(None, [None]).item() == pytest.approx(2.0)


def test_an_offset_without_a_margin_is_refused(inputs, tmp_path):
    """PREF-6."""
    refusal = trained("odpo", inputs, tmp_path, "pairs").refusal()
    assert refusal["reason"] == "an offset needs a margin"
    assert refusal["where"] == "row 1, margin"
