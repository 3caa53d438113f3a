"""A planted wrong rounding is named: its step, operation, tensor and element."""

from __future__ import annotations

import json
import struct
import sys
from contextlib import nullcontext

import pytest

from kolm_build.core.bisect import first_element, first_operation
from kolm_build.core.numerics import Numerics
from kolm_build.core.request import StepRequest
from kolm_build.core.trace import parting
from kolm_build.numerics import native
from tests.cli.command import kolm
from tests.numerics.faults import OPTIMISER, Fault, Plan
from tests.steps_ml.calling import write_rows
from tests.support.models import ROOT, tiny_llama, tiny_rows

pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

PARAMS = {
    "batch_size": 4,
    "gradient_accumulation": 2,
    "compute_dtype": "fp32",
    "learning_rate": "5e-3",
    "lora_dropout": "0.05",
    "max_length": 128,
    "max_steps": 4,
}

# One ulp in one element of a forward pass is mostly rounded away before the
# step ends; then the traces are equal, and there is nothing to find.
PLANS = (
    Plan(step=1, name="aten.mm.default", occurrence=6, index=17, ulps=1 << 22),
    Plan(step=3, name="aten.mm.default", occurrence=213, index=3, ulps=1 << 12),
    Plan(step=2, name="aten._log_softmax.default", occurrence=1, index=40, ulps=1 << 22),
    Plan(step=3, name="aten._log_softmax_backward_data.default", index=9),
    Plan(step=4, name="aten.silu_backward.default", occurrence=1, index=100, ulps=1 << 22),
    Plan(step=4, name=OPTIMISER, role="self[3]", index=11),
    Plan(step=2, name="aten.linalg_vector_norm.default"),
)


class Deaf:
    def progress(self, *args, **kwargs):
        pass


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    rows = tiny_rows(root / "rows").read_text().splitlines()
    pairs = [(one["text"], one["ward"]) for one in map(json.loads, rows)]
    return {
        "model": tiny_llama(root / "model"),
        "train": write_rows(root / "train", "train.jsonl", pairs[:32]),
    }


def run(inputs, scratch, plan=None, watchers=()):
    """The trace of a training, with the fault of `plan`; and the fault."""
    from kolm_build.steps import sft
    from kolm_build.steps._stage import Stage, train

    request = StepRequest(
        step="sft",
        params=PARAMS,
        inputs={role: str(path) for role, path in inputs.items()},
        outputs={},
        scratch=str(scratch),
        numerics=Numerics(cls="native-1", seed=3),
        events_fd=1,
    )
    native.apply(request.numerics)  # as a process does that begins
    fault = nullcontext() if plan is None else Fault(plan)
    with fault:
        stage = Stage.parse(request.params, sft.TAKE)
        return train(request, Deaf(), stage, watchers).trace, fault


def step_of(inputs, scratch, step, plan=None, watch=None):
    """What one step of a training logs."""
    from kolm_build.steps._replay import StepWatcher

    watcher = StepWatcher(step, watch)
    trace, _ = run(inputs, scratch, plan, [watcher])
    assert len(trace.lines) == step
    return watcher.traced


@pytest.fixture(scope="module")
def good(inputs, tmp_path_factory):
    return run(inputs, tmp_path_factory.mktemp("good"))[0]


def f32(value):
    return struct.pack("<f", value)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.name}-{plan.step}")
def test_a_planted_fault_is_found_where_it_is(inputs, tmp_path, good, plan):
    """BIS-1, BIS-3, BIS-4, TRACE-6."""
    bad, fault = run(inputs, tmp_path, plan)
    assert fault.values is not None, "the plan names an operation that runs"
    assert parting(good, bad).step == plan.step
    logs = [step_of(inputs, tmp_path, plan.step, some).operations for some in (None, plan)]
    found = first_operation(*logs)
    assert found.names == (plan.name, plan.name)
    assert found.occurrence == plan.occurrence
    one, other = (
        step_of(inputs, tmp_path, plan.step, some, watch=found.number) for some in (None, plan)
    )
    left, right = one.tensors[found.output], other.tensors[found.output]
    assert left.role == plan.role
    element = first_element(left, right)
    assert (element.index, element.differing) == (plan.index, 1)
    assert element.values == tuple(value.hex() for value in fault.values)
    assert element.ulps == plan.ulps
    assert one.origin == other.origin


def test_tracing_changes_no_bit(inputs, tmp_path, good):
    """BIS-6: a run again gives the leaf that was recorded."""
    from kolm_build.steps._replay import StepWatcher

    again, _ = run(inputs, tmp_path, watchers=[StepWatcher(3, 100)])
    assert again.lines == good.lines[:3]


def test_the_log_holds_forward_backward_clipping_and_optimiser(inputs, tmp_path):
    """BIS-3."""
    logged = step_of(inputs, tmp_path, 2).operations
    names = [one.name for one in logged]
    for name in (
        "aten.embedding.default",
        "aten.mm.default",
        "aten.silu_backward.default",
        "aten.linalg_vector_norm.default",
        OPTIMISER,
    ):
        assert name in names
    assert all(one.outputs == () for one in logged if one.name == "aten.view.default")
    optimiser = next(one for one in logged if one.name == OPTIMISER)
    assert len(optimiser.outputs) % 4 == 0  # parameters, gradients and two moments
    assert len(optimiser.outputs) > 100


def origin_of(inputs, tmp_path, name, occurrence=0):
    logged = step_of(inputs, tmp_path, 1).operations
    numbers = [number for number, one in enumerate(logged) if one.name == name]
    return step_of(inputs, tmp_path, 1, watch=numbers[occurrence]).origin


def test_an_operation_of_the_forward_pass_names_its_module_and_line(inputs, tmp_path):
    """BIS-4."""
    origin = origin_of(inputs, tmp_path, "aten.silu.default")
    assert origin.module.endswith("layers.0.mlp.act_fn")
    assert origin.line.startswith("transformers/")
    assert origin.backward is None


def test_an_operation_of_a_gradient_names_the_line_of_the_forward_pass(inputs, tmp_path):
    """BIS-4."""
    forward = origin_of(inputs, tmp_path, "aten.silu.default", 1)
    origin = origin_of(inputs, tmp_path, "aten.silu_backward.default")
    assert origin.backward == "SiluBackward0"
    assert (origin.module, origin.line) == (forward.module, forward.line)


def test_an_operation_of_the_optimiser_belongs_to_no_module(inputs, tmp_path):
    """BIS-4."""
    origin = origin_of(inputs, tmp_path, OPTIMISER)
    assert (origin.module, origin.backward) == ("", None)
    assert origin.line


WRAPPER = """#!{python}
import sys
sys.path.insert(0, {root!r})
from kolm_build.steps import _replay
from tests.numerics.faults import Fault, Plan
with Fault(Plan(step=2, name="aten.mm.default", occurrence=7, index=5, ulps=1 << 22)):
    sys.exit(_replay.main(["replay", *sys.argv[5:]]))
"""


@pytest.fixture
def sides(inputs, tmp_path, good):
    """Two folders of traces, one with a fault, and an interpreter that makes it again."""
    plan = Plan(step=2, name="aten.mm.default", occurrence=7, index=5, ulps=1 << 22)
    bad, _ = run(inputs, tmp_path, plan)
    for name, trace in (("good", good), ("bad", bad)):
        (tmp_path / name).mkdir()
        for file, data in trace.files().items():
            (tmp_path / name / file).write_bytes(data)
    wrapper = tmp_path / "python"
    wrapper.write_text(WRAPPER.format(python=sys.executable, root=str(ROOT)))
    wrapper.chmod(0o755)
    return str(tmp_path / "good"), str(tmp_path / "bad"), str(wrapper)


def test_the_command_names_the_operation_and_both_runs(inputs, sides):
    """BIS-2, BIS-4, BIS-6, BIS-7."""
    good, bad, wrapper = sides
    given = ["--model", str(inputs["model"]), "--train", str(inputs["train"])]
    answer = kolm("bisect", good, bad, *given, "--b", f"python={wrapper}", "--json")
    assert answer.status == 16, answer.err
    told = json.loads(answer.out)
    assert told["parting"]["step"] == 2
    assert told["reproduced"] == {"A": True, "B": True}
    operation = told["operation"]
    assert operation["names"] == ["aten.mm.default", "aten.mm.default"]
    assert operation["occurrence"] == 7
    assert (operation["element"]["index"], operation["element"]["ulps"]) == (5, 1 << 22)
    assert operation["origin"]["module"]
    assert "side B: step 2/2" in answer.err


def test_a_fault_of_another_machine_is_not_reproduced_here(inputs, sides):
    """BIS-6."""
    good, bad, _ = sides
    given = ["--model", str(inputs["model"]), "--train", str(inputs["train"])]
    answer = kolm("bisect", good, bad, *given)
    assert answer.status == 16
    assert "side A run again here: the same bits as recorded" in answer.out
    assert "side B run again here: other bits than recorded" in answer.out
    assert "both sides compute the same here" in answer.out


def test_other_inputs_than_those_of_the_training_are_refused(inputs, sides, tmp_path):
    """BIS-2."""
    good, bad, _ = sides
    rows = [(f"row {number}", "mind") for number in range(32)]
    other = write_rows(tmp_path / "other", "train.jsonl", rows)
    given = ["--model", str(inputs["model"]), "--train", str(other), "--json"]
    answer = kolm("bisect", good, bad, *given)
    assert answer.status == 2
    assert json.loads(answer.out)["error"]["where"] == "A: start.rows"
