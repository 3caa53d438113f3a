"""Under portable-1 one number that is off by one ulp is named; machines' differences are none."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from kolm_build.core import strict_json
from kolm_build.core.bisect import first_element, first_operation
from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances, StepRequest
from kolm_build.core.trace import Trace, parting
from kolm_build.numerics import kernels, portable
from tests.cli.command import kolm
from tests.numerics.faults import OPTIMISER, Fault, Plan
from tests.steps_ml.calling import run_step, write_rows
from tests.support.models import ROOT, tiny_llama, tiny_rows

pytestmark = [
    pytest.mark.ml,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not kernels.LIBRARY.is_file(), reason="the kernels are not compiled"),
]

PARAMS = {  # the tiny example's, but for the number of steps
    "learning_rate": "0.005",
    "batch_size": 8,
    "max_length": 128,
    "max_steps": 3,
    "warmup_steps": 1,
    "lora_r": 16,
    "lora_alpha": 32,
    "compute_dtype": "fp32",
}
SEED = 1
STEPS = PARAMS["max_steps"]

ATTENTION = "aten._scaled_dot_product_flash_attention_for_cpu"

# Where the search for a fault of one ulp that the leaf shows begins. Operations 0 to 5 of mm make
# the first layer's queries and keys, which for a row's first token, that sees itself alone, change
# nothing; 6 makes its values.
PLANS = (
    Plan(step=2, name="aten.mm.default", occurrence=6),
    Plan(step=2, name=f"{ATTENTION}.default"),
    Plan(step=2, name=f"{ATTENTION}_backward.default", role="output 2"),
    Plan(step=3, name="aten._log_softmax_backward_data.default", occurrence=2),
    Plan(step=3, name=OPTIMISER, role="self[3]", index=11),
)
PLACES = 64
"""Most elements that a search looks at."""


class Deaf:
    def progress(self, *args, **kwargs):
        pass


def until(step):
    """A watcher that ends a training after `step`."""
    from transformers import TrainerCallback

    class Ending(TrainerCallback):
        def on_step_end(self, _args, state, control, **_others):
            control.should_training_stop = state.global_step >= step

    return Ending()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    rows = tiny_rows(root / "rows").read_text().splitlines()
    pairs = [(one["text"], one["ward"]) for one in map(json.loads, rows)]
    return {
        "model": tiny_llama(root / "model"),
        "train": write_rows(root / "train", "train.jsonl", pairs[:100]),
    }


def run(inputs, scratch, plan=None, watchers=()):
    """The trace of a training on the portable kernels with the fault of `plan`; and the fault."""
    from kolm_build.numerics.apply import applied_as
    from kolm_build.steps import sft
    from kolm_build.steps._stage import Stage, train

    request = StepRequest(
        step="sft",
        params=PARAMS,
        inputs={role: str(path) for role, path in inputs.items()},
        outputs={},
        scratch=str(scratch),
        numerics=Numerics(cls="portable-1", seed=SEED),
        events_fd=1,
        circumstances=Circumstances(kernels=str(kernels.LIBRARY), threads=1),
    )
    threads = torch.get_num_threads()
    fault = Fault(plan or Plan(step=0, name=""))
    try:
        with applied_as(request), fault:
            stage = Stage.parse(request.params, sft.TAKE)
            return train(request, Deaf(), stage, watchers).trace, fault
    finally:
        torch.set_num_threads(threads)


def seen(inputs, scratch, good, start):
    """`start`, moved to the first element from there on whose fault changes its step's leaf.

    Most of what is off by one ulp in a forward pass is rounded away before the step ends; then
    the trainings are equal and there is nothing to find. The class has the same bits everywhere,
    so this finds the same place everywhere.
    """
    for index in range(start.index, start.index + PLACES):
        plan = replace(start, index=index)
        trace, fault = run(inputs, scratch, plan, [until(plan.step)])
        assert fault.values is not None, "the plan names an operation that runs"
        if trace.lines[plan.step - 1] != good.lines[plan.step - 1]:
            return plan
    raise AssertionError(f"none of {PLACES} elements is seen: {start}")


def logged(inputs, scratch, step, plan=None, watch=None):
    """What one step of a training logs."""
    from kolm_build.steps._replay import StepWatcher

    watcher = StepWatcher(step, watch)
    run(inputs, scratch, plan, [watcher])
    return watcher.traced


@pytest.fixture(scope="module")
def good(inputs, tmp_path_factory):
    return run(inputs, tmp_path_factory.mktemp("good"))[0]


@pytest.mark.parametrize("start", PLANS, ids=lambda plan: f"{plan.name}-{plan.step}")
def test_one_ulp_is_found_where_it_is(inputs, tmp_path, good, start):
    """BIS-1, BIS-3, BIS-4, BIS-5, TRACE-6."""
    plan = seen(inputs, tmp_path, good, start)
    bad, fault = run(inputs, tmp_path, plan)
    assert parting(good, bad).step == plan.step
    logs = [logged(inputs, tmp_path, plan.step, some).operations for some in (None, plan)]
    found = first_operation(*logs)
    assert found.names == (plan.name, plan.name)
    assert found.occurrence == plan.occurrence
    one, other = (
        logged(inputs, tmp_path, plan.step, some, watch=found.number) for some in (None, plan)
    )
    left, right = one.tensors[found.output], other.tensors[found.output]
    assert left.role == plan.role
    element = first_element(left, right)
    assert (element.index, element.differing, element.ulps) == (plan.index, 1, 1)
    assert element.values == tuple(value.hex() for value in fault.values)
    assert one.origin == other.origin


# ------------------------------------------------------------------------ the command line

FAULTY = Plan(step=2, name=PLANS[0].name, occurrence=PLANS[0].occurrence)
WRAPPER = """#!{python}
import sys
sys.path.insert(0, {root!r})
from kolm_build.steps import _replay
from tests.numerics.faults import Fault, Plan
with Fault({plan!r}):
    sys.exit(_replay.main(["replay", *sys.argv[5:]]))
"""


def ways():
    """Two ways to run a training: an instruction set and a number of threads each."""
    best, other, *_ = portable.isas()
    return (best, 1), (other, 2)


@pytest.fixture(scope="module")
def trainings(inputs, tmp_path_factory):
    """The folders of two traces, of processes of their own in the two ways."""
    root = tmp_path_factory.mktemp("trainings")
    places = [root / name for name in "ab"]
    for place in places:
        place.mkdir()

    def train(place, way):
        isa, threads = way
        done = run_step(
            *("sft", place),
            inputs=inputs,
            params=PARAMS,
            env={},
            seed=SEED,
            portable=(threads, isa),
        )
        return done.folder("trace")

    with ThreadPoolExecutor(2) as pool:
        return tuple(pool.map(train, places, ways()))


def around():
    """The options that run both sides again as they ran."""
    (one, threads), (other, more) = ways()
    return [
        *("--a", f"isa={one}", "--a", f"threads={threads}"),
        *("--b", f"isa={other}", "--b", f"threads={more}"),
    ]


def given(inputs):
    return ["--model", str(inputs["model"]), "--train", str(inputs["train"])]


def written(folder, trace):
    folder.mkdir()
    for name, data in trace.files().items():
        (folder / name).write_bytes(data)
    return str(folder)


def read(folder):
    return Trace.of_files(*((folder / name).read_bytes() for name in ("trace.json", "trace.jsonl")))


def test_trainings_on_other_instruction_sets_and_threads_are_identical(trainings, good):
    """BIS-7, NUM-100, NUM-105: one root, which is that of a training in this process too."""
    one, other = map(read, trainings)
    assert one.root == other.root == good.root
    answer = kolm("bisect", *map(str, trainings))
    assert (answer.status, answer.out) == (0, "identical\n")


def test_a_doctored_trace_is_found_and_not_reproduced(inputs, trainings, tmp_path):
    """BIS-2, BIS-6, BIS-7: its root fits, and running it again shows that its side lies."""
    other = read(trainings[1])
    lines = list(other.lines)
    step = json.loads(lines[1])
    step["loss"] = "0x1.8p+0"
    lines[1] = strict_json.dumps(step)
    doctored = written(tmp_path / "doctored", replace(other, lines=tuple(lines)))
    answer = kolm("bisect", str(trainings[0]), doctored, *given(inputs), *around())
    assert answer.status == 16, answer.err
    assert "first different step: 2 (loss)\n" in answer.out
    assert "side A run again here: the same bits as recorded" in answer.out
    assert "side B run again here: other bits than recorded" in answer.out
    assert "both sides compute the same here" in answer.out


def test_one_ulp_is_named_across_instruction_sets_and_threads(inputs, trainings, good, tmp_path):
    """BIS-2, BIS-4, BIS-6: nothing but the fault differs between the sides."""
    plan = seen(inputs, tmp_path, good, FAULTY)
    bad, fault = run(inputs, tmp_path, plan)
    wrapper = tmp_path / "python"
    wrapper.write_text(WRAPPER.format(python=sys.executable, root=str(ROOT), plan=plan))
    wrapper.chmod(0o755)
    sides = [str(trainings[0]), written(tmp_path / "bad", bad)]
    more = ["--b", f"python={wrapper}", "--json"]
    answer = kolm("bisect", *sides, *given(inputs), *around(), *more)
    assert answer.status == 16, answer.err
    told = json.loads(answer.out)
    assert told["parting"]["step"] == plan.step
    assert told["reproduced"] == {"A": True, "B": True}
    operation = told["operation"]
    assert operation["names"] == [plan.name, plan.name]
    assert (operation["occurrence"], operation["tensor"]) == (plan.occurrence, plan.role)
    element = operation["element"]
    assert (element["index"], element["ulps"], element["differing"]) == (plan.index, 1, 1)
    assert element["values"] == [value.hex() for value in fault.values]


def test_an_instruction_set_that_no_machine_has_is_refused(inputs, trainings, good, tmp_path):
    """BIS-2."""
    shorter = written(tmp_path / "other", replace(good, lines=(*good.lines[:2], b'{"step":3}')))
    answer = kolm("bisect", str(trainings[0]), shorter, *given(inputs), "--a", "isa=abacus")
    assert answer.status not in {0, 16}
    assert "no portable kernels for this instruction set" in answer.err
