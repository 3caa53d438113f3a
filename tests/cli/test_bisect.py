"""`kolm bisect` over traces alone: the step is named, nothing is run."""

import json

import pytest

from kolm_build.core import strict_json
from kolm_build.core.trace import Trace
from tests.cli.command import kolm


def write(folder, losses, *, epochs=1, **more):
    lines = (strict_json.dumps({"loss": loss, "step": n}) for n, loss in enumerate(losses, 1))
    folder.mkdir()
    for name, data in (
        Trace(start={"params": {"epochs": epochs}} | more, lines=tuple(lines)).files().items()
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
    assert answer.out == (
        "the trainings began differently: params.epochs\n"
        "  params.epochs: a setting of the recipe\n    A: 1\n    B: 2\n"
    )


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("frozen", "the weights that are not trained, those of the base model"),
        ("generator", "the state of the random generator"),
        ("parameters", "the adapters as they were before the first step"),
        ("rows", "the tokens and labels of the train rows"),
    ],
)
def test_what_differs_at_the_start_is_told_in_words_and_with_both_values(tmp_path, name, meaning):
    """BIS-1: although every step differs too."""
    one = write(tmp_path / "a", "abcd", **{name: "b3:one"})
    other = write(tmp_path / "b", "xyzw", **{name: "b3:other"})
    answer = kolm("bisect", one, other)
    assert (answer.status, answer.out) == (
        16,
        f"the trainings began differently: {name}\n"
        f"  {name}: {meaning}\n    A: b3:one\n    B: b3:other\n",
    )
    told = json.loads(kolm("bisect", one, other, "--json").out)
    assert told["parting"] == {"step": 0, "parts": [name]}
    assert told["beginnings"] == {name: ["b3:one", "b3:other"]}


def test_a_setting_that_one_side_has_not_is_told(trace, tmp_path):
    """BIS-1."""
    other = write(tmp_path / "b", "abcd", numerics={"seed": 3})
    answer = kolm("bisect", trace, other)
    assert "  numerics: how it computes\n    A: not set\n" in answer.out


def test_a_training_that_ends_early_is_told(trace, tmp_path):
    answer = kolm("bisect", trace, write(tmp_path / "b", "abc"))
    assert answer.status == 16
    assert answer.out == "one training ends before step 4; they are equal until there\n"


def test_what_is_no_trace_is_refused(trace, tmp_path):
    answer = kolm("bisect", trace, str(tmp_path))
    assert answer.status == 2
    assert "trace.json" in answer.err


def test_a_training_that_is_not_portable_has_no_instruction_set_to_choose(tmp_path):
    """BIS-2."""
    numerics = {"class": "native-1", "seed": 3, "threads": 1}
    sides = [write(tmp_path / losses, losses, numerics=numerics) for losses in ("ab", "ac")]
    inputs = ["--model", str(tmp_path), "--train", str(tmp_path)]
    answer = kolm("bisect", *sides, *inputs, "--a", "isa=avx2")
    assert answer.status == 2
    assert "ATEN_CPU_CAPABILITY" in answer.err


def test_an_artifact_holds_no_trace(trace, tmp_path):
    """BIS-8."""
    artifact = tmp_path / "model.kolm"
    artifact.write_bytes(b"PK")
    answer = kolm("bisect", trace, str(artifact))
    assert answer.status == 2
    assert "an artifact holds no trace" in answer.err
    assert "--node" in answer.err


@pytest.mark.parametrize(
    "more", [[], ["--model", "x"], ["--a", "colour=red"], ["--a", "threads=0"]]
)
def test_half_a_question_is_refused(trace, more):
    given = [trace, *more] if not more else [trace, trace, *more]
    assert kolm("bisect", *given).status == 2
