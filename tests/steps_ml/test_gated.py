"""X-LoRA: who counts how much, PEFT's own as the oracle, and what cannot be mixed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.core.gated import Expert, Gated
from tests.steps_ml.calling import (
    files_of,
    pair_row,
    prompt_row,
    run_step,
    write_lines,
    write_rows,
)
from tests.steps_ml.test_attached import portable
from tests.support.models import tiny_llama, tiny_rows

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 0.2]], dtype=torch.float64)
IDS = torch.tensor([[1, 50, 60, 70, 80, 33, 20]])
EXPERTS = (Expert(rank=4, alpha=32), Expert(rank=2, alpha=32, is_stabilised=True))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    rows = [json.loads(line) for line in tiny_rows(root / "rows").read_text().splitlines()][:12]
    pairs = [(one["text"], one["ward"]) for one in rows]
    found = {
        "model": tiny_llama(root / "model"),
        "train": write_rows(root / "train", "train.jsonl", pairs),
    }
    for number, (name, rank) in enumerate((("lora", 4), ("rslora", 2)), 1):
        ran = sft(found, root, adapter=name, lora_r=rank, target_modules="q_proj,up_proj")
        found[f"adapters-{number}"] = ran.folder("adapter")
    return found


def sft(inputs, root, *, roles=("model", "train"), **params):
    given = {"compute_dtype": "fp32", "learning_rate": "2e-2", "max_steps": 3, "batch_size": 4}
    return run_step(
        "sft",
        root,
        inputs={role: inputs[role] for role in roles},
        params=given | params,
        portable=(1, None),
    )


ALL = ("model", "train", "adapters-1", "adapters-2")


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    given = {"xlora_depth": 3, "xlora_size": 8}
    return sft(inputs, root, roles=ALL, adapter="x-lora", **given).folder("adapter")


def network(inputs, adapter, place):
    from kolm_build.runtime.loading import load

    attached = {"model": inputs["model"], "adapter": adapter}
    return load(run_step("attach", place, inputs=attached).folder()).network


# ------------------------------------------------------------------ counts, by hand


def test_counts_are_the_softmax_and_those_left_out_are_zero():
    """MOE-41: the greatest, of equal ones the first; nothing is scaled up again."""
    from kolm_build.runtime.gated import scalings

    powers = np.exp(LOGITS.numpy())
    p = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scalings(LOGITS, 3).numpy(), p)
    np.testing.assert_allclose(scalings(LOGITS, 2).numpy(), p * [[1, 1, 0], [0, 1, 1]])
    even = scalings(torch.zeros(1, 3), 1)
    np.testing.assert_allclose(even.numpy(), [[1 / 3, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_counts_have_the_gradient_of_finite_differences(top_k):
    """MOE-41."""
    from kolm_build.runtime.gated import scalings

    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda one: scalings(one, top_k), [logits])


def layer_of(features, gate=None, experts=EXPERTS):
    """A layer, its four matrices random, the gate's as given; and what it was made of."""
    from kolm_build.runtime.gated import GatedLinear, Seen

    torch.manual_seed(1)
    together = sum(one.rank for one in experts)
    down, up = torch.randn(together, 8), torch.randn(6, together)
    gate = torch.randn(len(experts), 5) if gate is None else gate
    bias = torch.zeros(len(experts))
    layer = torch.nn.Linear(8, 6)
    seen = Seen(features)
    made = GatedLinear(
        layer, experts, len(experts), seen, down=down, gate=gate, gate_bias=bias, up=up
    )
    return made, layer, down, up


def test_a_layer_is_its_definition():
    """MOE-40: in NumPy, float64."""
    features, values = torch.randn(3, 5), torch.randn(3, 8)
    made, layer, down, up = layer_of(features)
    logits = features.double().numpy() @ made.gate.double().numpy().T
    counts = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    x, a, b = (one.double().numpy() for one in (values, down, up))
    wanted = layer(values).detach().double().numpy()
    wanted = wanted + counts[:, :1] * 8 * (x @ a[:4].T @ b[:, :4].T)
    wanted = wanted + counts[:, 1:] * 32 / np.sqrt(2) * (x @ a[4:].T @ b[:, 4:].T)
    np.testing.assert_allclose(made(values).detach().numpy(), wanted, rtol=2e-5, atol=1e-4)


def test_equal_counts_are_the_mean_of_the_changes():
    """MOE-43."""
    values = torch.randn(3, 8)
    made, layer, down, up = layer_of(torch.randn(3, 5), gate=torch.zeros(2, 5))
    changes = [
        (values @ part.T @ side.T) * one.scale
        for one, part, side in zip(
            EXPERTS, (down[:4], down[4:]), (up[:, :4], up[:, 4:]), strict=True
        )
    ]
    wanted = layer(values) + sum(changes) / 2
    torch.testing.assert_close(made(values), wanted, rtol=1e-5, atol=1e-4)


def test_a_layer_that_sees_nothing_is_as_it_was():
    """MOE-40: the first reading."""
    made, layer, _, _ = layer_of(None)
    values = torch.randn(3, 8)
    assert torch.equal(made(values), layer(values))


def test_gates_have_the_gradient_of_finite_differences():
    """MOE-40, MOE-41: of the sum of squares of what a layer gives."""
    features, values = torch.randn(3, 5), torch.randn(3, 8)
    made, _, _, _ = layer_of(features)
    gate = made.gate.detach().clone()

    def loss(one):
        made.gate.data = one
        return (made(values).double() ** 2).sum().item() / 1000

    made.gate.requires_grad_()
    ((made(values).double() ** 2).sum() / 1000).backward()
    for at in np.ndindex(*gate.shape):
        step = torch.zeros_like(gate)
        step[at] = 1e-2
        slope = (loss(gate + step) - loss(gate - step)) / 2e-2
        assert made.gate.grad[at].item() == pytest.approx(slope, rel=2e-2, abs=2e-3)


# ------------------------------------------------------------------ against PEFT


def peft_network(inputs, folders, **given):
    from peft import XLoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(inputs["model"], dtype=torch.float32)
    base.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=base.config.hidden_size,
        adapters={str(number): str(folder) for number, folder in enumerate(folders)},
        layerwise_scalings=True,
        xlora_dropout_p=0.0,
        **given,
    )
    return get_peft_model(base, config)


def give_gates(made, ours):
    """PEFT's network `made` with the gating network of ours: its last layer holds all gates."""
    from peft.tuners.lora import LoraLayer

    from kolm_build.runtime.gated import gated, gating_of

    paths = [
        name.split("model.model.", 1)[1]
        for name, one in made.named_modules()
        if isinstance(one, LoraLayer)
    ]
    paths = ["model." + path.removeprefix("model.") for path in paths]
    layers = dict(gated(ours))
    linear = [
        one
        for one in made.base_model.internal_xlora_classifier.layers
        if isinstance(one, torch.nn.Linear)
    ]
    gating = gating_of(ours)
    with torch.no_grad():
        for one, weight, bias in zip(linear, gating.weights, gating.biases, strict=False):
            one.weight.copy_(weight)
            one.bias.copy_(bias)
        linear[-1].weight.copy_(torch.cat([layers[path].gate for path in paths]))
        linear[-1].bias.copy_(torch.cat([layers[path].gate_bias for path in paths]))
    return paths, linear


@pytest.mark.parametrize("top_k", [2, 1])
def test_it_computes_what_peft_computes(inputs, trained, tmp_path, top_k):
    """MOE-40, MOE-41, MOE-46: logits, and the gradient of every gate."""
    from kolm_build.runtime.gated import gated

    folder = shutil.copytree(trained, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_bytes(strict_json.dumps({**config, "top_k": top_k}))
    ours = network(inputs, folder, tmp_path)
    made = peft_network(
        inputs,
        [inputs["adapters-1"], inputs["adapters-2"]],
        xlora_depth=3,
        xlora_size=8,
        top_k_lora=None if top_k == 2 else top_k,
    )
    paths, linear = give_gates(made, ours)
    for _, layer in gated(ours):
        layer.gate.requires_grad_()
        layer.gate_bias.requires_grad_()
    wanted = made(input_ids=IDS).logits
    found = ours(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for logits in (found, wanted):
        (logits.log_softmax(dim=-1)[0, :, 5].sum()).backward()
    layers = dict(gated(ours))
    for part, theirs in (("gate", linear[-1].weight), ("gate_bias", linear[-1].bias)):
        gradient = torch.cat([getattr(layers[path], part).grad for path in paths])
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(gradient, theirs.grad, rtol=1e-3, atol=1e-6)


def test_one_adapter_alone_is_that_adapter_exactly(inputs, tmp_path):
    """MOE-40, MOE-42: its count is 1, whatever the gate says."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    roles = ("model", "train", "adapters-1")
    adapter = sft(inputs, tmp_path, roles=roles, adapter="x-lora").folder("adapter")
    ours = network(inputs, adapter, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(inputs["model"], dtype=torch.float32)
    with torch.no_grad():
        plain = base(input_ids=IDS).logits
        wanted = PeftModel.from_pretrained(base, inputs["adapters-1"])(input_ids=IDS).logits
        assert torch.equal(ours(input_ids=IDS).logits, wanted)
        assert not torch.equal(plain, wanted)


# ------------------------------------------------------------------ training


def test_adapters_stay_as_they_were(inputs, trained):
    """MOE-42."""
    from kolm_build.runtime.weights import map_weights

    found = map_weights(trained / "adapter_model.safetensors").tensors
    at = 0
    for number, rank in ((1, 4), (2, 2)):
        one = map_weights(inputs[f"adapters-{number}"] / "adapter_model.safetensors").tensors
        for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"):
            name = f"base_model.model.{path}"
            down, up = one[f"{name}.lora_A.weight"], one[f"{name}.lora_B.weight"]
            assert torch.equal(found[f"{path}.down"][at : at + rank], down)
            assert torch.equal(found[f"{path}.up"][:, at : at + rank], up)
        at += rank


def test_it_begins_with_the_mean_of_the_adapters(inputs, tmp_path):
    """MOE-43: as a LoRA of the changes' halves, before a step was made."""
    adapter = sft(
        inputs, tmp_path, roles=ALL, adapter="x-lora", learning_rate="0", max_steps=1
    ).folder("adapter")
    from kolm_build.runtime.weights import map_weights

    found = map_weights(adapter / "adapter_model.safetensors").tensors
    gates = [one for name, one in found.items() if ".gate" in name]
    assert gates
    assert not any(one.any() for one in gates)


def test_gates_learn_and_the_bytes_are_the_same_in_parts(inputs, tmp_path):
    """ALG-3, MOE-46: micro-batches change no byte."""
    params = {"adapter": "x-lora", "learning_rate": "5e-2", "epochs": 4, "max_steps": 4}
    whole = sft(inputs, tmp_path / "a", roles=ALL, **params, batch_size=12)
    split = sft(inputs, tmp_path / "b", roles=ALL, **params, batch_size=6, gradient_accumulation=2)
    files = files_of(whole.folder("adapter"))
    assert files == files_of(split.folder("adapter"))
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors", "base.json"]
    config = Gated.from_value(json.loads(files["adapter_config.json"]))
    assert config.experts == EXPERTS
    assert (config.top_k, config.widths) == (2, ())
    table = (whole.folder("metrics") / "metrics.csv").read_text().splitlines()
    losses = [float(line.split(",")[1]) for line in table[1:]]
    assert losses[-1] < losses[0]


def test_its_reference_is_the_mean_that_it_began_with(inputs, trained, tmp_path):
    """ALG-5, ADPT-6, MOE-43: neither the base nor what was learnt."""
    from kolm_build.steps.adapters.table import ADAPTERS

    given = {"learning_rate": "0", "max_steps": 1, "xlora_depth": 3, "xlora_size": 8}
    first = sft(inputs, tmp_path / "first", roles=ALL, adapter="x-lora", **given).folder("adapter")
    change = ADAPTERS["x-lora"](Fields({}))
    ours, begun = network(inputs, trained, tmp_path), network(inputs, first, tmp_path)
    with torch.no_grad():
        spoken = ours(input_ids=IDS).logits
        with change.reference(ours):
            reference = ours(input_ids=IDS).logits
        assert torch.equal(reference, begun(input_ids=IDS).logits)
        assert torch.equal(ours(input_ids=IDS).logits, spoken)
    assert not torch.equal(reference, spoken)


@pytest.mark.parametrize(("step", "rows"), [("dpo", "pairs"), ("grpo", "prompts")])
def test_any_objective_trains_it(inputs, tmp_path, step, rows):
    """MOE-44, ALG-3, ALG-5: one with a reference, one that draws what it learns from."""
    found = {
        "pairs": [pair_row(at, f"{at} a cough", "lung", "skin") for at in range(1, 5)],
        "prompts": [prompt_row(at, f"{at} a cough", "lung") for at in range(1, 5)],
    }
    train = write_lines(tmp_path / rows, "train.jsonl", found[rows])
    given = {"compute_dtype": "fp32", "learning_rate": "5e-2", "max_steps": 2, "adapter": "x-lora"}
    given |= {"reward_by": "exact", "generations": 2} if rows == "prompts" else {}

    def trained(place, **more):
        roles = {role: inputs[role] for role in ALL} | {"train": train}
        ran = run_step(step, place, inputs=roles, params=given | more, portable=(1, None))
        return files_of(ran.folder("adapter")), files_of(ran.folder("metrics"))

    whole = trained(tmp_path / "a", batch_size=4)
    assert whole == trained(tmp_path / "b", batch_size=2, gradient_accumulation=2)


# ------------------------------------------------------------------ what was read is kept


def test_said_token_by_token_or_read_at_once_it_has_one_set_of_bits(inputs, trained, tmp_path):
    """MOE-40, MOE-44: a token's counts follow from it and those before it alone."""
    from kolm_build.runtime.generate import read_prompts

    ours, ids = network(inputs, trained, tmp_path), IDS[0].tolist()
    with portable(), torch.no_grad():
        whole = ours(input_ids=IDS, use_cache=False).logits[0].float()
        said = read_prompts(ours, [ids[:1]])
        logits = [said.logits, *(said.read(torch.tensor([token])) for token in ids[1:])]
    assert torch.equal(torch.cat(logits), whole)


def test_what_was_read_without_the_adapters_is_no_beginning(inputs, trained, tmp_path):
    """MOE-44."""
    from transformers import AutoModelForCausalLM

    from kolm_build.errors import BuildError
    from kolm_build.runtime.generate import read_on, read_prompts

    ours = network(inputs, trained, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(inputs["model"], dtype=torch.float32)
    cache = read_prompts(base, [[1, 50, 60]]).cache
    with pytest.raises(BuildError, match="read without the adapters"):
        read_on(ours, cache, [[70]])


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("roles", "params", "where"),
    [
        (("model", "train"), {}, "inputs"),
        (("model", "train", "adapters-2"), {}, "inputs"),
        (ALL, {"top_k": 3}, "top_k"),
        (ALL, {"xlora_depth": 0}, "xlora_depth"),
    ],
)
def test_a_mixture_of_nothing_or_of_less_than_it_asks_for_is_refused(
    inputs, tmp_path, roles, params, where
):
    """MOE-45."""
    refusal = sft(inputs, tmp_path, roles=roles, adapter="x-lora", **params).refusal()
    assert refusal["where"] == where


def other_modules(inputs, folder, place):
    return sft(inputs, place, adapter="lora", target_modules="q_proj").folder("adapter")


def dora(inputs, folder, place):
    given = {"adapter": "dora", "target_modules": "q_proj,up_proj"}
    return sft(inputs, place, **given).folder("adapter")


def rounded(inputs, folder, place):
    given = {"adapter": "qlora", "target_modules": "q_proj,up_proj"}
    return sft(inputs, place, **given).folder("adapter")


def other_weights(inputs, folder, place):
    base = json.loads((folder / "base.json").read_bytes())
    changed = {**base, "weights": "b3:" + "1" * 64}
    (folder / "base.json").write_bytes(strict_json.dumps(changed))
    return folder


def unknown_weights(inputs, folder, place):
    (folder / "base.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (other_modules, "inputs.adapters-2"),
        (dora, "inputs.adapters-2.peft_type"),
        (rounded, "inputs.adapters-2.stored"),
        (other_weights, "inputs.adapters-2.weights"),
        (unknown_weights, "inputs.adapters-2.stored"),
    ],
)
def test_what_cannot_be_mixed_is_refused(inputs, tmp_path, change, where):
    """MOE-45."""
    folder = shutil.copytree(inputs["adapters-2"], tmp_path / "adapter")
    given = {**inputs, "adapters-2": change(inputs, folder, tmp_path)}
    assert sft(given, tmp_path, roles=ALL, adapter="x-lora").refusal()["where"] == where
