"""What optimisers do to weights, number by number: NumPy in float64 beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kolm_build.core.fields import Fields
from kolm_build.core.numerics import Numerics
from tests.support.models import tiny_llama

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

RATE, DECAY, STEPS = 0.25, 0.5, 5


class ByHand:
    """Algorithm 2 of arXiv:1711.05101 for one weight; a step that leaves it changes nothing."""

    def __init__(self, weight, rate=RATE, decay=DECAY):
        self.weight, self.rate, self.decay = weight.detach().double().numpy().copy(), rate, decay
        self.forget()

    def forget(self):
        self.first, self.second, self.steps = 0.0, 0.0, 0

    def step(self, gradient):
        g = gradient.double().numpy()
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * g
        self.second = 0.999 * self.second + 0.001 * g * g
        first = self.first / (1 - 0.9**self.steps)
        second = self.second / (1 - 0.999**self.steps)
        self.weight = self.weight - self.rate * self.decay * self.weight
        self.weight = self.weight - self.rate * first / (np.sqrt(second) + 1e-8)


def training():
    from kolm_build.steps._training_params import TrainingParams

    return TrainingParams.take(
        Fields({"learning_rate": str(RATE), "weight_decay": str(DECAY), "max_grad_norm": "0"})
    )


def network():
    """Two layers and a head, of one matrix each; parts of them have the names of LoRA's."""
    made = torch.nn.Module()
    made.layers = torch.nn.ModuleList([torch.nn.Linear(3, 4, bias=False) for _ in range(2)])
    made.head = torch.nn.Linear(3, 2, bias=False)
    made.lora_B = torch.nn.Linear(2, 2, bias=False)
    return made


def gradients(made, step):
    draw = torch.Generator().manual_seed(step)
    for one in made.parameters():
        one.grad = torch.randn(one.shape, generator=draw)


def check(made, optimiser, hands, *, moves=lambda _step, _name: True, forgets=False):
    """Some steps of `optimiser`, and of `hands` where `moves` says so, come to the same."""
    for step in range(STEPS):
        gradients(made, step)
        for name, one in made.named_parameters():
            if moves(step, name):
                hands[name].step(one.grad)
            elif forgets:
                hands[name].forget()
        optimiser.step()
    for name, one in made.named_parameters():
        np.testing.assert_allclose(
            one.detach().numpy(), hands[name].weight, rtol=2e-6, atol=1e-6, err_msg=name
        )


def test_adamw_is_its_papers(tmp_path):
    """ADPT-70: the optimiser of a stage's own trainer; norms do not decay."""
    from kolm_build.runtime.loading import load
    from kolm_build.steps import sft
    from kolm_build.steps._sequences import Continuation
    from kolm_build.steps._stage import Stage, make_trainer

    model = load(tiny_llama(tmp_path / "model"), dtype=torch.float32)
    given = {
        "adapter": "full",
        "compute_dtype": "fp32",
        "learning_rate": str(RATE),
        "optimiser": "adamw",
        "weight_decay": str(DECAY),
    }
    trainer = make_trainer(
        Stage.parse(given, sft.TAKE),
        model,
        [Continuation(ids=(1, 2, 3), start=1)],
        numerics=Numerics(cls="native-1"),
        scratch=tmp_path,
    )
    made = trainer.model
    hands = {
        name: ByHand(one, decay=0.0 if "norm" in name else DECAY)
        for name, one in made.named_parameters()
    }
    check(made, trainer.create_optimizer(), hands)


def test_a_first_step_of_adamw_is_the_rate_whatever_the_gradient():
    """ADPT-70: against the gradient's sign, without a decay."""
    from kolm_build.steps.optimisers._groups import adamw, groups, trained

    made = network()
    before = [one.detach().clone() for one in made.parameters()]
    given = training()
    optimiser = adamw(groups(trained(made), given, lambda _name: 1.0), given)
    for group in optimiser.param_groups:
        group["weight_decay"] = 0.0
    gradients(made, 0)
    optimiser.step()
    for one, old in zip(made.parameters(), before, strict=True):
        wanted = old - RATE * one.grad.sign()
        torch.testing.assert_close(one.detach(), wanted, rtol=1e-6, atol=1e-6)


def test_lora_plus_is_adamw_with_a_rate_of_its_own_for_b():
    """ADPT-71."""
    from kolm_build.steps.optimisers.lora_plus import LoraPlus

    made = network()
    hands = {
        name: ByHand(one, rate=RATE * (4 if "lora_B" in name else 1))
        for name, one in made.named_parameters()
    }
    check(made, LoraPlus(4.0).make(made, training()), hands)


def test_lisa_is_adamw_of_the_layers_that_were_drawn():
    """ADPT-72: one of two; a layer that is left keeps its moments, the head moves always."""
    from kolm_build.steps.optimisers.lisa import Lisa

    torch.manual_seed(5)
    made, lisa = network(), Lisa(1, 1)
    drawn = [lisa.active(step, [0, 1], 5) for step in range(STEPS)]
    assert len(set(drawn)) == 2

    def moves(step, name):
        return "layers" not in name or int(name.split(".")[1]) in drawn[step]

    hands = {name: ByHand(one) for name, one in made.named_parameters()}
    check(made, lisa.make(made, training()), hands, moves=moves)


def test_badam_is_adamw_of_one_layer_after_the_other():
    """ADPT-74: a layer that is left forgets its moments; the head never moves."""
    from kolm_build.steps.optimisers.badam import BAdam

    def moves(step, name):
        return name.startswith(f"layers.{step // 2 % 2}.")

    made = network()
    hands = {name: ByHand(one) for name, one in made.named_parameters()}
    check(made, BAdam(2).make(made, training()), hands, moves=moves, forgets=True)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_gradient_descent_is_a_geometric_sum_of_gradients(momentum):
    """ADPT-70: the decay is added to the gradient; without a momentum it is rate times that."""
    from kolm_build.steps.optimisers.sgd import Sgd

    made = network()
    optimiser = Sgd(momentum).make(made, training())
    weights = {name: one.detach().double().numpy().copy() for name, one in made.named_parameters()}
    moving = dict.fromkeys(weights, 0.0)
    for step in range(STEPS):
        gradients(made, step)
        for name, one in made.named_parameters():
            full = one.grad.double().numpy() + DECAY * weights[name]
            moving[name] = momentum * moving[name] + full
            weights[name] = weights[name] - RATE * moving[name]
        optimiser.step()
    for name, one in made.named_parameters():
        np.testing.assert_allclose(one.detach().numpy(), weights[name], rtol=2e-6, atol=1e-6)
