"""Mixtures of adapters: who speaks, what it costs, and that the bytes are the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kolm_build.core.fields import Fields
from tests.steps_ml.calling import files_of, run_step, write_rows
from tests.support.models import tiny_llama, tiny_rows

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 0.2]], dtype=torch.float64)


def params(name="moe-lora", **given):
    from kolm_build.steps.adapters.table import ADAPTERS

    given = {"experts": 3} | given
    return ADAPTERS[name](Fields(given)).params


def routing(name="moe-lora", **given):
    return params(name, **given).mixture


def p():
    powers = np.exp(LOGITS.numpy())
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_likeliest_experts_speak():
    """MOE-1: of one its probability, of several scaled to 1; equal ones in their order."""
    from kolm_build.runtime.mixture import chosen, gates

    one = gates(LOGITS, routing(top_k=1)).numpy()
    np.testing.assert_allclose(one, [[p()[0, 0], 0, 0], [0, p()[1, 1], 0]])
    two = gates(LOGITS, routing(top_k=2)).numpy()
    np.testing.assert_allclose(two.sum(axis=1), 1)
    np.testing.assert_allclose(two[0], [*(p()[0, :2] / p()[0, :2].sum()), 0])
    assert chosen(torch.zeros(1, 3), 2).tolist() == [[1, 1, 0]]


def test_all_experts_speak_where_routing_is_soft():
    """MOE-2."""
    from kolm_build.runtime.mixture import gates

    np.testing.assert_allclose(gates(LOGITS, routing("lora-moe")).numpy(), p())


def test_the_balance_loss_is_one_where_all_is_even_and_grows_with_crowding():
    """MOE-3: equation 4 of the switch transformer, by hand."""
    from kolm_build.steps.adapters.moe_lora import balance_loss

    even = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]).double()
    assert balance_loss(even, routing(top_k=1)).item() == pytest.approx(1)
    crowded = torch.tensor([[50.0, 0, 0]] * 3).double()
    assert balance_loss(crowded, routing(top_k=1)).item() == pytest.approx(3)
    shares = np.array([0.5, 0.5, 0])
    wanted = 3 * (shares * p().mean(axis=0)).sum()
    assert balance_loss(LOGITS, routing(top_k=1)).item() == pytest.approx(wanted)


def test_the_z_loss_is_the_mean_square_of_the_normaliser():
    """MOE-3."""
    from kolm_build.steps.adapters.moe_lora import z_loss

    wanted = (np.log(np.exp(LOGITS.numpy()).sum(axis=1)) ** 2).mean()
    assert z_loss(LOGITS).item() == pytest.approx(wanted)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_losses_and_the_gates_have_the_gradient_of_finite_differences(top_k):
    """MOE-1, MOE-3: through the probabilities, not through the choice."""
    from kolm_build.runtime.mixture import gates
    from kolm_build.steps.adapters.moe_lora import balance_loss, z_loss

    logits = LOGITS.clone().requires_grad_()
    given = routing(top_k=top_k)

    def told(one):
        return gates(one, given), balance_loss(one, given), z_loss(one)

    assert torch.autograd.gradcheck(told, [logits])


def test_one_expert_is_one_adapter():
    """MOE-1: then the router has nothing to say."""
    from kolm_build.steps.adapters.moe_lora import mixture

    torch.manual_seed(1)
    layer = torch.nn.Linear(8, 6, bias=False)
    made = mixture(layer, routing(experts=1, top_k=1, lora_r=2, lora_alpha=4))
    torch.nn.init.normal_(made.up)
    values = torch.randn(5, 8)
    wanted = layer(values) + 2 * values @ made.down.T @ made.up.T
    torch.testing.assert_close(made(values), wanted)


def test_before_anything_is_learnt_the_layer_is_as_it_was():
    """MOE-1."""
    from kolm_build.steps.adapters.moe_lora import mixture

    layer = torch.nn.Linear(8, 6)
    values = torch.randn(5, 8)
    assert torch.equal(mixture(layer, routing())(values), layer(values))


def test_more_speakers_than_experts_are_refused():
    from kolm_build.errors import InvalidRecordError

    with pytest.raises(InvalidRecordError, match="more experts") as caught:
        params(experts=2, top_k=3)
    assert caught.value.where == "top_k"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    rows = [json.loads(line) for line in tiny_rows(root / "rows").read_text().splitlines()][:12]
    pairs = [(one["text"], one["ward"]) for one in rows]
    return {
        "model": tiny_llama(root / "model"),
        "train": write_rows(root / "train", "train.jsonl", pairs),
    }


@pytest.mark.parametrize("name", ["moe-lora", "lora-moe"])
def test_a_mixture_learns_and_the_bytes_are_the_same_in_parts(name, inputs, tmp_path):
    """ALG-3, MOE-4."""

    def trained(place, **given):
        settings = {"compute_dtype": "fp32", "learning_rate": "5e-3", "max_steps": 3, "lora_r": 4}
        return run_step(
            "sft",
            place,
            inputs=inputs,
            params={"adapter": name, **settings, **given},
            portable=(1, None),
        )

    whole = trained(tmp_path / "a", batch_size=4)
    split = trained(tmp_path / "b", batch_size=2, gradient_accumulation=2)
    files = files_of(whole.folder("adapter"))
    assert files == files_of(split.folder("adapter"))
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors", "base.json"]
    config = json.loads(files["adapter_config.json"])
    assert config["peft_type"] == "KOLM_MOE_LORA"
    assert config["top_k"] == (2 if name == "moe-lora" else 4)
    table = (whole.folder("metrics") / "metrics.csv").read_text().splitlines()
    losses = [float(line.split(",")[1]) for line in table[1:]]
    assert losses[-1] < losses[0]
