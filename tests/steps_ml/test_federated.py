"""A site's training: where it starts, what is added to the gradient, what it leaves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kolm_build.steps.federated._tensors import AdapterFolder, ServerState, read_arrays
from tests.steps_ml.calling import files_of, run_step, write_rows
from tests.support.models import tiny_llama

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

ROWS = [("Ada reports low mood", "mind"), ("Bo has hives", "skin"), ("Cleo coughs", "lung")]
SGD = {
    "optimiser": "sgd",
    "schedule": "constant",
    "max_grad_norm": "0",
    "weight_decay": "0",
    "learning_rate": "0.5",
    "compute_dtype": "fp32",
    "lora_r": 4,
    "lora_alpha": 8,
    "target_modules": "q_proj,v_proj",
    "batch_size": 2,
}
ONE_STEP = {**SGD, "batch_size": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("federated")


@pytest.fixture(scope="module")
def inputs(place):
    """A model, its rows, and an adapter that changes something already."""
    model = tiny_llama(place / "model")
    names = {"lora_r": 4, "lora_alpha": 8, "target_modules": "q_proj,v_proj"}
    begun = run_step("federated-start", place, inputs={"model": model}, params=names)
    adapter = AdapterFolder.read(begun.folder("adapter"))
    random = np.random.default_rng(1)
    arrays = {
        name: random.normal(scale=0.05, size=one.shape) if ".lora_B." in name else one
        for name, one in adapter.arrays.items()
    }
    (place / "global").mkdir()
    AdapterFolder(arrays=arrays, config=adapter.config).write(place / "global")
    return {
        "model": model,
        "train": write_rows(place / "train", "train.jsonl", ROWS),
        "global": place / "global",
        "state": begun.folder("state"),
    }


def update(place, inputs, method="fed-avg", *, params=SGD, portable=(1, None), **more):
    given = {"method": method, **params, **more}
    return run_step("federated-update", place, inputs=inputs, params=given, portable=portable)


def tensors(ran, output="update", file="adapter_model.safetensors"):
    return read_arrays(ran.folder(output) / file)


def state_with(place, name, arrays):
    folder = place / f"state-{name}"
    folder.mkdir()
    ServerState(round=1, arrays=arrays).write(folder)
    return folder


def close(found, wanted, *, within):
    return all(np.abs(found[name] - wanted[name]).max() <= within for name in wanted)


def test_a_start_changes_nothing_and_is_as_wide_as_pefts(place, inputs):
    """FED-60."""
    adapter = AdapterFolder.read(inputs["state"].parent / "adapter")
    down = {name: one for name, one in adapter.arrays.items() if ".lora_A." in name}
    for name, one in adapter.arrays.items():
        if name in down:
            bound = 1 / np.sqrt(one.shape[1])
            assert 0.9 * bound < np.abs(one).max() <= bound
            assert abs(one.mean()) < 5 * bound / np.sqrt(3 * one.size)
        else:
            assert not one.any()
    values = list(down.values())
    assert not np.array_equal(values[0], values[2]), "each tensor has a stream of its own"
    again = run_step(
        "federated-start", place, inputs={"model": inputs["model"]}, params={"lora_r": 4, "seed": 1}
    )
    other = AdapterFolder.read(again.folder("adapter")).arrays
    assert not np.array_equal(other[next(iter(down))], values[0])


def test_a_layer_that_is_not_there_is_refused(place, inputs):
    refusal = run_step(
        "federated-start",
        place,
        inputs={"model": inputs["model"]},
        params={"target_modules": "q_proj,query"},
    ).refusal()
    assert refusal["where"] == "target_modules"
    assert refusal["actual"] == "'query'"


def test_an_update_has_the_same_bytes_with_any_number_of_threads(place, inputs):
    """FED-61."""
    once, again = update(place, inputs), update(place, inputs, portable=(2, None))
    for output in ("update", "card", "control", "metrics", "trace"):
        assert files_of(once.folder(output)) == files_of(again.folder(output))
    card = json.loads((once.folder("card") / "card.json").read_text())
    assert (card["rows"], card["steps"]) == (3, 2)
    assert float(card["loss_last"]) > 0


def test_no_pull_is_averaging_and_a_pull_keeps_nearer(place, inputs):
    """FED-61: mu = 0 of FedProx is FedAvg, byte for byte."""
    plain = update(place, inputs)
    assert files_of(update(place, inputs, "fed-prox", mu="0").folder("update")) == files_of(
        plain.folder("update")
    )
    start = read_arrays(inputs["global"] / "adapter_model.safetensors")

    def moved(ran):
        end = tensors(ran)
        return sum(((end[name] - one) ** 2).sum() for name, one in start.items())

    assert moved(update(place, inputs, "fed-prox", mu="0.8")) < moved(plain)


def test_a_first_round_of_scaffold_is_averaging(place, inputs):
    """FED-61: without control variates there is nothing to correct."""
    ran = update(place, inputs, "scaffold")
    plain = tensors(update(place, inputs))
    assert all(np.array_equal(one, plain[name]) for name, one in tensors(ran).items())


def test_after_one_step_a_sites_control_variate_is_its_gradient(place, inputs):
    """FED-64: SCAFFOLD's option II, whatever the control variates were."""
    start = read_arrays(inputs["global"] / "adapter_model.safetensors")
    plain = tensors(update(place, inputs, params=ONE_STEP))
    gradient = {name: (one - plain[name]) / 0.5 for name, one in start.items()}
    random = np.random.default_rng(2)
    server = {name: random.normal(scale=0.1, size=one.shape) for name, one in start.items()}
    own = {name: random.normal(scale=0.1, size=one.shape) for name, one in start.items()}
    state = state_with(place, "scaffold", {f"control.{name}": one for name, one in server.items()})
    (place / "own").mkdir()
    ServerState(round=1, arrays=own).write(place / "own")
    (place / "own" / "state.safetensors").rename(place / "own" / "control.safetensors")
    given = {**inputs, "state": state, "control": place / "own"}
    ran = update(place, given, "scaffold", params=ONE_STEP)
    control = tensors(ran, "control", "control.safetensors")
    assert close(control, gradient, within=2e-6)
    change = tensors(ran, "update", "control.safetensors")
    own32 = {name: one.astype(np.float32) for name, one in own.items()}
    assert close(change, {name: gradient[name] - own32[name] for name in own}, within=2e-6)
    end = tensors(ran)
    wanted = {
        name: one - 0.5 * (gradient[name] + server[name] - own[name]) for name, one in start.items()
    }
    assert close(end, wanted, within=2e-6)


def test_dynamic_regularisation_is_the_gradient_with_two_terms(place, inputs):
    """FED-61, FED-64: in the first step the pull is zero, so only g_i counts."""
    start = read_arrays(inputs["global"] / "adapter_model.safetensors")
    plain = tensors(update(place, inputs, params=ONE_STEP))
    first = update(place, inputs, "fed-dyn", params=ONE_STEP, mu="0.2")
    assert close(tensors(first), plain, within=0)
    own = tensors(first, "control", "control.safetensors")
    wanted = {name: -0.2 * (plain[name] - one) for name, one in start.items()}
    assert close(own, wanted, within=1e-6)
    given = {**inputs, "control": first.folder("control")}
    second = update(place, given, "fed-dyn", params=ONE_STEP, mu="0.2")
    wanted = {name: plain[name] + 0.5 * own[name] for name in start}
    assert close(tensors(second), wanted, within=1e-6)
    assert (second.folder("update") / "control.none").exists(), "it stays at the site"


def test_with_a_frozen_only_b_changes(place, inputs):
    """FED-61: FFA-LoRA."""
    start = read_arrays(inputs["global"] / "adapter_model.safetensors")
    end = tensors(update(place, inputs, "ffa-lora"))
    for name, one in start.items():
        assert np.array_equal(end[name], one) == (".lora_A." in name)


def test_an_adapter_of_another_rank_is_refused(place, inputs):
    """FED-67."""
    refusal = update(place, inputs, params={**SGD, "lora_r": 2}).refusal()
    assert "does not fit" in refusal["reason"]
    assert ".lora_A.weight" in refusal["where"]


def test_a_parameter_that_nobody_knows_is_refused(place, inputs):
    refusal = update(place, inputs, params={**SGD, "surprise": 1}).refusal()
    assert refusal["where"] == "surprise"


def test_another_class_of_numerics_is_refused(place, inputs):
    """FED-62: the aggregator would refuse it too."""
    refusal = update(place, inputs, portable=None).refusal()
    assert refusal["where"] == "numerics.class"
