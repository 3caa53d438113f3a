"""`kolm bisect` over traces alone: the step is named, nothing is run."""

import json

import pytest

from kolm_build.core import strict_json
from kolm_build.core.trace import Trace
from tests.cli.command import kolm


def write(folder, losses, *, epochs=1):
    lines = (strict_json.dumps({"loss": loss, "step": n}) for n, loss in enumerate(losses, 1))
    folder.mkdir()
    for name, data in (
        Trace(start={"params": {"epochs": epochs}}, lines=tuple(lines)).files().items()
    ):
        (folder / name).write_bytes(data)
    return str(folder)


@pytest.fixture
def trace(tmp_path):
    return write(tmp_path / "a", "abcd")


def test_equal_traces_are_identical(trace):
    """BIS-7."""
    answer = kolm("bisect", trace, trace)
    assert (answer.status, answer.out) == (0, "identical\n")


def test_the_step_is_named_from_the_traces_alone(trace, tmp_path):
    """BIS-1, BIS-7."""
    answer = kolm("bisect", trace, write(tmp_path / "b", "abxd"))
    assert answer.status == 16
    assert answer.out.startswith("first different step: 3 (loss)\n")
    answer = kolm("bisect", trace, str(tmp_path / "b"), "--json")
    told = json.loads(answer.out)
    assert told["parting"] == {"step": 3, "parts": ["loss"]}
    assert (told["traced"], told["operation"]) == (False, None)


def test_another_start_is_named_and_nothing_is_run(trace, tmp_path):
    """BIS-1: the inputs that are given are not even looked at."""
    other = write(tmp_path / "b", "abcd", epochs=2)
    answer = kolm("bisect", trace, other, "--model", "/absent", "--train", "/absent")
    assert answer.status == 16
    assert answer.out == "the trainings began differently: params.epochs\n"


def test_a_training_that_ends_early_is_told(trace, tmp_path):
    answer = kolm("bisect", trace, write(tmp_path / "b", "abc"))
    assert answer.status == 16
    assert answer.out == "one training ends before step 4; they are equal until there\n"


def test_what_is_no_trace_is_refused(trace, tmp_path):
    answer = kolm("bisect", trace, str(tmp_path))
    assert answer.status == 2
    assert "trace.json" in answer.err


@pytest.mark.parametrize(
    "more", [[], ["--model", "x"], ["--a", "colour=red"], ["--a", "threads=0"]]
)
def test_half_a_question_is_refused(trace, more):
    given = [trace, *more] if not more else [trace, trace, *more]
    assert kolm("bisect", *given).status == 2
