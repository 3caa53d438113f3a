"""A recipe of two stages, looked at through the command line."""

import json
import shutil

import pytest

from tests.cli.command import kolm

RECIPE = """
version = 1
name = "staged"

[environment]
distributions = ["blake3"]

[base]
script = "model.py"
format = "safetensors"

[data]
from = "path:./rows.jsonl"
prompt = "{q}"
answer = "{a}"

[sets.votes]
from = "path:./votes.jsonl"
schema = "pairs"
prompt = "{q}"
chosen = "{good}"
rejected = "{bad}"

[[train]]
algorithm = "sft"

[[train]]
algorithm = "dpo"
rows = "votes"
adapter = "full"

[evaluate]

[score]
size_budget_bytes = 1
latency_budget_us = 1
cost_budget_microusd = 1
device = { name = "cpu", flops_per_s = 1, bytes_per_s = 1, microusd_per_hour = 0 }
"""


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """The project, locked; and its store beside it."""
    folder = tmp_path_factory.mktemp("staged") / "project"
    folder.mkdir()
    (folder / "kolm.toml").write_text(RECIPE)
    for name in ("model.py", "rows.jsonl", "votes.jsonl"):
        (folder / name).write_text(f"# {name}\n")
    assert _kolm("lock", folder).status == 0
    return folder


@pytest.fixture
def project(locked, tmp_path):
    """A copy of the project, to be changed."""
    shutil.copytree(locked.parent, tmp_path / "copy")
    return tmp_path / "copy" / "project"


def _kolm(command, folder, *argv):
    return kolm(command, *argv, "-C", str(folder), "--store", str(folder.parent / "store"))


def _edit(folder, before, after):
    text = (folder / "kolm.toml").read_text()
    assert before in text
    (folder / "kolm.toml").write_text(text.replace(before, after))


def _locked(folder):
    return (folder / "kolm.lock").read_text()


def test_locking_pins_the_sets_and_is_repeatable(project):
    """LOCK-1, RECIPE-21."""
    first = _locked(project)
    assert 'name = "data-votes"' in first
    assert 'step = "dpo"' in first
    assert _kolm("lock", project).status == 0
    assert _locked(project) == first


def test_a_stage_is_shown_with_its_inputs_and_parameters(project):
    """RECIPE-11, RECIPE-22."""
    shown = json.loads(_kolm("show", project, "train-2", "--json").out)
    assert shown["inputs"] == {"model": "merge-1.out", "train": "dataset-votes.train"}
    assert set(shown["outputs"]) == {"metrics", "model", "trace"}
    assert (shown["params"]["adapter"], shown["params"]["optimiser"]) == ("full", "adamw")
    rows = json.loads(_kolm("show", project, "dataset-votes", "--json").out)
    assert rows["inputs"]["against"] == "dataset.compared"


def test_the_way_from_the_model_to_the_votes_is_told(project):
    told = _kolm("why", project, "evaluation", "dataset-votes").out
    assert [line.strip(" └─") for line in told.splitlines()] == [
        "evaluation",
        "model: train-2",
        "train: dataset-votes",
    ]


def test_a_change_of_the_second_stage_cannot_change_the_first(project, tmp_path):
    """LOCK-9, RECIPE-23."""
    old = tmp_path / "old"
    old.mkdir()
    for name in ("kolm.toml", "kolm.lock"):
        (old / name).write_bytes((project / name).read_bytes())
    _edit(project, 'adapter = "full"', 'adapter = "full"\nbeta = "0.5"')
    assert _kolm("lock", project).status == 0
    told = kolm("lock", "diff", str(old / "kolm.lock"), "-C", str(project))
    assert told.status == 0, told.out + told.err
    effects = dict(line.split(": ", 1) for line in told.out.splitlines() if "change: " in line)
    assert {"train-1", "merge-1", "dataset-votes"} <= {*effects["cannot change"].split(", ")}
    assert effects["may change"].split(", ")[0] == "train-2"


def test_everything_new_is_explained(project):
    told = _kolm("explain", project, "--json")
    assert told.status == 0, told.err
    assert "dataset-votes" in told.out


def test_a_stale_set_is_named(project):
    """LOCK-7."""
    (project / "votes.jsonl").write_text("other\n")
    told = _kolm("build", project)
    assert told.status != 0
    assert "input data-votes of" in told.err


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('rows = "votes"', 'rows = "votes"\nteacher = "base"', "train[1].teacher: unknown key"),
        ('rows = "votes"', "", "train[1].rows: rows that are not answers"),
        ('algorithm = "sft"', 'algorithm = "sft"\nfrom = "train-2"', "train[0].from: a stage"),
        ('chosen = "{good}"', "", "sets.votes.chosen: missing value"),
    ],
)
def test_what_does_not_fit_is_told_with_its_path(project, before, after, said):
    """RECIPE-1, RECIPE-16, RECIPE-17."""
    _edit(project, before, after)
    told = _kolm("lock", project)
    assert told.status != 0
    assert f"kolm.toml: {said}" in told.err


STUDENT = """algorithm = "kd-cached"
teacher = "base"
from = "base"
adapter = "full"
"""


def test_a_build_with_two_students_runs_their_teacher_once(project):
    """RECIPE-29."""
    more = f"{STUDENT}\n[[train]]\n{STUDENT}epochs = 2\n"
    _edit(project, 'algorithm = "sft"\n', more)
    assert _kolm("lock", project).status == 0
    told = _kolm("build", project, "--dry-run")
    assert told.status == 0, told.err
    nodes = [word for line in told.out.splitlines() for word in line.split()]
    assert [one for one in nodes if one.startswith("logits-")] == ["logits-1"]
    for student in ("train-1", "train-2"):
        assert nodes.count(student) == 1
        shown = json.loads(_kolm("show", project, student, "--json").out)
        assert shown["inputs"]["logits"] == "logits-1.out"


def test_a_log_of_calls_that_is_another_is_named(project):
    """DATA-61, LOCK-7."""
    said = """
[sets.said]
from = "path:./votes.jsonl"
schema = "answers"
prompt = "{q}"
answer = "{a}"
provenance = { vendor = "V", model = "M", date = "2026-03-31", licence = "L", call_log = "calls" }

[[train]]
algorithm = "sft"
"""
    _edit(project, '\n[[train]]\nalgorithm = "sft"\n', said)
    (project / "calls").write_text("asked, answered\n")
    assert _kolm("lock", project).status == 0
    assert 'name = "data-said.call_log"' in _locked(project)
    (project / "calls").write_text("asked, answered otherwise\n")
    told = _kolm("build", project)
    assert told.status != 0
    assert "input data-said.call_log of" in told.err
