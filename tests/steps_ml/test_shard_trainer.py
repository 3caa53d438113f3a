"""Under portable-1 the rows of a step may be run in micro-batches of any size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain

import pytest
import torch

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances, StepRequest
from kolm_build.core.schedule import Schedule
from kolm_build.numerics import kernels, native
from kolm_build.steps._training_params import SCHEDULES
from tests.steps_ml.calling import write_rows
from tests.support.models import ROOT, tiny_llama, tiny_rows

pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

SETTINGS = {
    "learning_rate": "5e-3",
    "epochs": 2,
    "max_length": 128,
    "warmup_steps": 1,
    "lora_dropout": "0.1",
    "compute_dtype": "fp32",
}


class Deaf:
    def progress(self, *args, **kwargs):
        pass


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    rows = tiny_rows(root / "rows").read_text().splitlines()
    pairs = [(one["text"], one["ward"]) for one in map(json.loads, rows)]
    return {
        "model": str(tiny_llama(root / "model")),
        "train": str(write_rows(root / "train", "train.jsonl", pairs[:21])),
    }


def trained(inputs, scratch, *, cls="portable-1", seed=3, **params):
    """The trace of a training and its adapters; the kernels are stock here."""
    native.apply(Numerics(cls="native-1", seed=seed))
    return run(inputs, scratch, cls=cls, seed=seed, **params)


def run(inputs, scratch, *, cls="portable-1", seed=3, **params):
    """The trace of a training and its adapters, on the kernels that are active."""
    from kolm_build.steps import sft
    from kolm_build.steps._stage import Stage, train

    numerics = Numerics(cls=cls, seed=seed)
    request = StepRequest(
        step="sft",
        params=SETTINGS | params,
        inputs=inputs,
        outputs={},
        scratch=str(scratch),
        numerics=numerics,
        events_fd=1,
        circumstances=Circumstances(kernels="", threads=1) if cls == "portable-1" else None,
    )
    done = train(request, Deaf(), Stage.parse(request.params, sft.TAKE))
    adapters = {
        name: one.detach().clone()
        for name, one in done.network.named_parameters()
        if one.requires_grad
    }
    return done.trace, adapters


def test_a_training_is_the_same_whatever_the_process_drew_before(inputs, tmp_path):
    """ALG-13: twice in one process, the arithmetic applied once."""
    trace, adapters = trained(inputs, tmp_path, max_steps=1)
    torch.rand(3)
    again, same = run(inputs, tmp_path, max_steps=1)
    assert again.lines == trace.lines
    for name, tensor in adapters.items():
        assert torch.equal(same[name], tensor), name


@pytest.fixture
def whole(inputs, tmp_path):
    return trained(inputs, tmp_path, batch_size=8, gradient_accumulation=1)


@pytest.mark.parametrize("split", [(4, 2), (2, 4), (1, 8)])
def test_a_batch_in_parts_gives_the_same_bits(inputs, tmp_path, whole, split):
    """NUM-110, NUM-112, NUM-115: 21 rows, so the last step of an epoch is a short one."""
    size, times = split
    trace, adapters = trained(inputs, tmp_path, batch_size=size, gradient_accumulation=times)
    expected_trace, expected = whole
    assert trace.lines == expected_trace.lines
    assert len(trace.lines) == 2 * 3
    for name, tensor in expected.items():
        assert torch.equal(adapters[name], tensor), name


def test_the_sum_of_shards_is_the_gradient_of_the_batch(inputs, tmp_path):
    """NUM-110: the trainer that runs whole batches is the oracle, up to rounding."""
    params = {"batch_size": 8, "lora_dropout": "0", "max_steps": 3}
    ours, _ = trained(inputs, tmp_path, **params)
    theirs, _ = trained(inputs, tmp_path, cls="native-1", **params)
    for one, other in zip(map(json.loads, ours.lines), map(json.loads, theirs.lines), strict=True):
        assert one["rows"] == other["rows"]
        for figure in ("loss", "grad_norm"):
            expected = pytest.approx(float.fromhex(other[figure]), rel=1e-4)
            assert float.fromhex(one[figure]) == expected


def test_dropout_belongs_to_the_shard_and_the_seed():
    """NUM-115."""
    from kolm_build.steps._trainer import seeded, shard_seed

    seeds = {shard_seed(*key) for key in ((3, 0, 0), (3, 0, 1), (3, 1, 0), (4, 0, 0))}
    assert len(seeds) == 4
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(shard_seed(3, 0, 0)):
            draws.append(torch.rand(5))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_row_is_in_the_trace_once_an_epoch(whole):
    """TRACE-4."""
    trace, _ = whole
    rows = [json.loads(line)["rows"] for line in trace.lines]
    assert list(map(len, rows)) == [8, 8, 5] * 2
    for epoch in (rows[:3], rows[3:]):
        assert sorted(chain.from_iterable(epoch)) == list(range(1, 22))


def test_a_trace_holds_the_state_after_every_step(inputs, tmp_path, whole):
    """TRACE-3, TRACE-4, TRACE-5."""
    from kolm_build.numerics.state import tensors_digest

    trace, adapters = whole
    steps = list(map(json.loads, trace.lines))
    assert sorted(steps[0]) == [
        *("generator", "grad_norm", "learning_rate", "loss", "loss_decimal"),
        *("optimiser", "parameters", "rows", "step"),
    ]
    assert sorted(trace.start) == [
        *("frozen", "generator", "numerics", "parameters", "params", "rows")
    ]
    assert trace.start["params"] == SETTINGS | {"batch_size": 8, "gradient_accumulation": 1}
    assert trace.start["numerics"] == {"class": "portable-1", "seed": 3, "threads": 1}
    states = [trace.start["parameters"], *(step["parameters"] for step in steps)]
    assert states[0] == states[1]  # the first step of a warm-up has the rate 0
    assert len(set(states)) == len(states) - 1
    assert states[-1] == str(tensors_digest(adapters.items()))
    shorter, _ = trained(inputs, tmp_path, batch_size=8, gradient_accumulation=1, max_steps=2)
    other, _ = trained(inputs, tmp_path, batch_size=8, gradient_accumulation=1, seed=4)
    assert shorter.start["parameters"] == trace.start["parameters"] != other.start["parameters"]
    assert shorter.start["frozen"] == other.start["frozen"]
    assert shorter.start["rows"] == other.start["rows"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rates_in_a_trace_are_the_schedules_own(inputs, tmp_path, schedule):
    """SFT-10, SFT-13."""
    trace, _ = trained(inputs, tmp_path, batch_size=8, gradient_accumulation=1, schedule=schedule)
    rates = [json.loads(line)["learning_rate"] for line in trace.lines]
    wanted = Schedule(kind=schedule, warmup_steps=1, steps=6)
    assert rates == [(5e-3 * wanted.factor(step)).hex() for step in range(6)]


def test_one_bit_of_the_state_is_another_digest():
    """TRACE-5."""
    from kolm_build.numerics.state import generator_digest, optimiser_digest, tensors_digest

    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones(3)
    optimiser.step()
    before = optimiser_digest(optimiser, {weight: "w"}), tensors_digest([("w", weight)])
    with torch.no_grad():
        optimiser.state[weight]["exp_avg"][1] = torch.nextafter(
            optimiser.state[weight]["exp_avg"][1], torch.tensor(9.0)
        )
        weight[2] = torch.nextafter(weight[2], torch.tensor(9.0))
    after = optimiser_digest(optimiser, {weight: "w"}), tensors_digest([("w", weight)])
    assert before[0] != after[0]
    assert before[1] != after[1]
    state = generator_digest()
    torch.rand(1)
    assert generator_digest() != state


PORTABLE = """
import json, sys
from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances
from kolm_build.numerics import kernels, portable
from kolm_build.numerics.apply import applied
from tests.steps_ml.test_shard_trainer import run

model, train, scratch, isa, threads, size, times = sys.argv[1:]
here = Circumstances(kernels=str(kernels.LIBRARY), threads=int(threads))
with applied(Numerics(cls="portable-1", seed=3), here):
    if isa in portable.isas():
        portable.set_isa(isa)
    trace, _ = run({"model": model, "train": train}, scratch,
                   batch_size=int(size), gradient_accumulation=int(times))
    print(json.dumps([line.decode() for line in trace.lines]))
"""

WAYS = (("avx512", 1, 8, 1), ("avx2", 2, 2, 4), ("avx512", 2, 1, 8))


@pytest.mark.skipif(not kernels.LIBRARY.is_file(), reason="the portable kernels are not compiled")
def test_instruction_set_threads_and_parts_change_no_bit(inputs, tmp_path):
    """NUM-110: every leaf of the trace, on the portable kernels themselves."""
    found = []
    for number, way in enumerate(WAYS):
        (tmp_path / str(number)).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", PORTABLE, *inputs.values(), str(tmp_path / str(number)),
             *map(str, way)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert len(found[0]) == 6
    for lines in found[1:]:
        assert lines == found[0]
