"""Every optimiser: equal bytes twice, and the optimiser that it is at its limit."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from kolm_build.core.fields import Fields
from kolm_build.steps import table
from tests.steps_ml import calling
from tests.steps_ml.calling import files_of, run_step, write_rows
from tests.support.models import tiny_llama

pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

ROWS = [("a pain", "bone"), ("it is a cough", "lung"), ("sad", "mind"), ("a rash!", "skin")]
CASES = {
    "adamw": {},
    "badam": {"badam_interval": 1},
    "ema": {"ema_decay": "0.5"},
    "galore": {"galore_rank": 4, "galore_interval": 2},
    "lisa": {"lisa_interval": 1, "lisa_layers": 1},
    "lora-plus": {"lora_plus_ratio": "4"},
    "sgd": {"sgd_momentum": "0.5"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs `sft` under the guard; its weights, each run once."""
    root = tmp_path_factory.mktemp("optimisers")
    model = tiny_llama(root / "model")
    rows = write_rows(root / "train", "train.jsonl", ROWS)
    cache = {}

    def run(optimiser, *, adapter="full", epochs=2, weight_decay="0.1", again=0, **params):
        key = (optimiser, adapter, epochs, weight_decay, again, *sorted(params.items()))
        if key not in cache:
            output = "model" if adapter == "full" else "adapter"
            spec = table.STEPS["sft"]
            names = tuple(sorted((output, "metrics", "trace")))
            with pytest.MonkeyPatch.context() as patch:
                steps = {**table.STEPS, "sft": dataclasses.replace(spec, outputs=names)}
                patch.setattr(calling, "STEPS", steps)
                ran = run_step(
                    "sft",
                    root,
                    inputs={"model": model, "train": rows},
                    params={
                        "adapter": adapter,
                        "batch_size": 2,
                        "compute_dtype": "fp32",
                        "epochs": epochs,
                        "learning_rate": "0.01",
                        "optimiser": optimiser,
                        "weight_decay": weight_decay,
                        **params,
                    },
                    portable=(1 + again, None),
                )
            cache[key] = (
                files_of(ran.folder(output)),
                load_file(next(ran.folder(output).glob("*.safetensors"))),
            )
        return cache[key]

    run.model = model
    return run


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@pytest.mark.parametrize("name", sorted(CASES))
def test_training_twice_gives_equal_bytes(name, trained):
    """ADPT-70."""
    adapter = "lora" if name == "lora-plus" else "full"
    one, _ = trained(name, adapter=adapter, **CASES[name])
    two, _ = trained(name, adapter=adapter, again=1, **CASES[name])
    assert one == two


def test_one_rate_for_both_is_adamw_bit_for_bit(trained):
    """ADPT-71: lora-plus with a ratio of 1."""
    _, plain = trained("adamw", adapter="lora")
    _, one = trained("lora-plus", adapter="lora", lora_plus_ratio="1")
    _, four = trained("lora-plus", adapter="lora", lora_plus_ratio="4")
    assert same(one, plain)
    assert not same(four, plain)


def test_lora_plus_needs_a_b():
    from kolm_build.errors import InvalidRecordError
    from kolm_build.steps._training_params import TrainingParams
    from kolm_build.steps.optimisers.lora_plus import LoraPlus

    with pytest.raises(InvalidRecordError, match="with a B"):
        LoraPlus(2.0).make(torch.nn.Linear(2, 2), TrainingParams.take(Fields({})))


def test_lora_plus_gives_b_and_nothing_else_its_rate(trained):
    """ADPT-71: PEFT's own groups are the oracle; the rate that is noted is the recipe's."""
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    from kolm_build.runtime.loading import load
    from kolm_build.steps._training_params import TrainingParams
    from kolm_build.steps.optimisers.lora_plus import LoraPlus

    network = get_peft_model(
        load(trained.model).network, LoraConfig(target_modules="all-linear", r=2)
    )
    ours = LoraPlus(4.0).make(network, TrainingParams.take(Fields({"learning_rate": "0.5"})))
    theirs = create_loraplus_optimizer(
        network, torch.optim.AdamW, lr=0.5, loraplus_lr_ratio=4.0, loraplus_weight_decay=0.0
    )

    def rates(optimiser):
        return {id(one): group["lr"] for group in optimiser.param_groups for one in group["params"]}

    assert rates(ours) == rates(theirs)
    assert ours.param_groups[0]["lr"] == 0.5


def test_galore_of_full_rank_is_adamw(trained):
    """ADPT-73: nothing is projected then."""
    _, plain = trained("adamw")
    _, whole = trained("galore", galore_rank=260)
    _, small = trained("galore", galore_rank=4, galore_interval=2)
    for name, one in plain.items():
        torch.testing.assert_close(whole[name], one, rtol=1e-5, atol=1e-6)
    assert not same(small, plain)


def test_a_projected_step_is_the_papers():
    """ADPT-73: algorithm 2 in NumPy, its vectors by LAPACK, three steps, two projections."""
    import numpy as np

    from kolm_build.steps.optimisers.galore import GaLoreAdamW

    generator = np.random.default_rng(0)
    for shape in ((6, 9), (9, 6)):
        weight = torch.nn.Parameter(torch.zeros(shape))
        optimiser = GaLoreAdamW(
            [{"params": [weight], "lr": 0.1, "weight_decay": 0.0}],
            0.1,
            rank=2,
            interval=2,
            scale=0.5,
        )
        wanted, first, second = np.zeros(shape), 0.0, 0.0
        for step in range(3):
            gradient = generator.normal(size=shape)
            weight.grad = torch.tensor(gradient, dtype=torch.float32)
            optimiser.step()
            wide = gradient if shape[0] <= shape[1] else gradient.T
            if step % 2 == 0:
                left = np.linalg.svd(wide)[0][:, :2]
                left = left * np.sign(left[np.abs(left).argmax(0), [0, 1]])
            low = left.T @ wide
            first = 0.9 * first + 0.1 * low
            second = 0.999 * second + 0.001 * low**2
            moved = (first / (1 - 0.9 ** (step + 1))) / (
                np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
            )
            change = 0.5 * left @ moved
            wanted = wanted - 0.1 * (change if shape[0] <= shape[1] else change.T)
            np.testing.assert_allclose(weight.detach().numpy(), wanted, atol=2e-4)


def test_lisa_with_every_layer_is_adamw_bit_for_bit(trained):
    """ADPT-72."""
    _, plain = trained("adamw")
    _, every = trained("lisa", lisa_layers=2, lisa_interval=1)
    assert same(every, plain)


def test_lisa_leaves_the_layers_that_were_not_drawn(trained):
    """ADPT-72: in one period; what lies outside the layers moves."""
    base = load_file(trained.model / "model.safetensors")
    _, moved = trained("lisa", lisa_layers=1, lisa_interval=100, weight_decay="0")
    layers = {
        name.split(".")[2]
        for name in moved
        if "layers" in name and not torch.equal(moved[name], base[name])
    }
    assert len(layers) == 1
    assert not torch.equal(moved["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


def test_lots_are_those_of_the_seed_and_the_period():
    """ADPT-72: fair over many periods, and fixed."""
    from kolm_build.steps.optimisers.lisa import Lisa

    lisa = Lisa(2, 1)
    drawn = [lisa.active(period, range(6), seed=5) for period in range(600)]
    assert all(len(one) == 2 for one in drawn)
    for layer in range(6):
        assert 150 < sum(layer in one for one in drawn) < 250
    assert drawn != [lisa.active(period, range(6), seed=6) for period in range(600)]
    assert sorted(lisa.active(0, range(6), seed=5)) == sorted(drawn[0])


def test_badam_trains_one_layer_after_the_other(trained):
    """ADPT-74: two steps of the first layer alone; what lies outside the layers stays."""
    base = load_file(trained.model / "model.safetensors")
    _, first = trained("badam", badam_interval=100, weight_decay="0")
    for name, one in first.items():
        assert torch.equal(one, base[name]) == (".layers.0." not in name), name
    _, both = trained("badam", badam_interval=1, weight_decay="0")
    assert any(not torch.equal(both[name], base[name]) for name in both if ".layers.1." in name)


def test_badam_forgets_a_layers_moments():
    """ADPT-74: when its turn comes again they begin at 0."""
    from kolm_build.steps._training_params import TrainingParams
    from kolm_build.steps.optimisers.badam import BAdam

    network = torch.nn.Module()
    network.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)])
    optimiser = BAdam(2).make(network, TrainingParams.take(Fields({})))
    for step in range(5):
        for one in network.parameters():
            one.grad = torch.ones_like(one)
        optimiser.step()
        held = {at for at in (0, 1) if network.layers[at].weight in optimiser.state}
        assert held == {step // 2 % 2}
    assert optimiser.state[network.layers[0].weight]["step"].item() == 1


def test_a_mean_that_forgets_at_once_is_adamw_bit_for_bit(trained):
    """ADPT-75: ema with a decay of 0; with 1 it is the first weights."""
    _, plain = trained("adamw")
    _, last = trained("ema", ema_decay="0")
    assert same(last, plain)
    _, first = trained("ema", ema_decay="1")
    assert same(first, load_file(trained.model / "model.safetensors"))


def test_the_mean_is_its_recurrence():
    """ADPT-75."""
    from kolm_build.steps.optimisers.ema import Averager

    network = torch.nn.Linear(1, 1, bias=False)
    averager, state = Averager(0.75), SimpleNamespace(global_step=2, max_steps=2)
    optimizer = torch.optim.SGD(network.parameters())
    given = {"model": network, "optimizer": optimizer}
    with torch.no_grad():
        network.weight.fill_(8.0)
        averager.on_train_begin(None, state, None, **given)
        for value in (4.0, 0.0):
            network.weight.fill_(value)
            averager.on_step_end(None, state, None, **given)
    state.max_steps = 3
    averager.on_train_end(None, state, None, **given)
    assert network.weight.item() == 0  # it is put aside, to go on
    state.max_steps = 2
    averager.on_train_end(None, state, None, **given)
    assert network.weight.item() == 0.75 * (0.75 * 8 + 0.25 * 4)


def test_gradient_descent_is_torchs(trained):
    """ADPT-70: sgd's first step moves by rate times gradient, so by less than adamw's rate."""
    from kolm_build.steps._training_params import TrainingParams
    from kolm_build.steps.optimisers.sgd import Sgd

    network = torch.nn.Linear(2, 1, bias=False)
    start = network.weight.detach().clone()
    optimiser = Sgd(0.5).make(network, TrainingParams.take(Fields({"learning_rate": "0.25"})))
    for _ in range(2):
        network.weight.grad = torch.tensor([[1.0, -2.0]])
        optimiser.step()
    wanted = start - 0.25 * (1 + 1.5) * torch.tensor([[1.0, -2.0]])
    torch.testing.assert_close(network.weight.detach(), wanted)


def test_parameters_decay_as_trls_do(trained):
    """ADPT-70: the same names as the trainer's own optimiser."""
    from transformers import Trainer

    from kolm_build.runtime.loading import load
    from kolm_build.steps.optimisers._groups import decays

    network = load(trained.model).network
    wanted = set(Trainer.get_decay_parameter_names(None, network)) - {
        "lm_head.weight"
    }  # it is tied
    assert {name for name, _ in network.named_parameters() if decays(name)} == wanted


def test_the_catalogue_and_the_steps_know_the_same_optimisers():
    """ALG-2: names, and defaults."""
    from kolm_build.core.catalogue.table import OPTIMISERS as ROWS_OF
    from kolm_build.steps.optimisers.table import OPTIMISERS

    assert set(ROWS_OF) == set(OPTIMISERS) == set(CASES)
    for name, row in ROWS_OF.items():
        spelled = Fields({one.name: one.default for one in row.parameters})
        made = OPTIMISERS[name](spelled)
        spelled.done()
        assert vars(made) == vars(OPTIMISERS[name](Fields({}))), name
