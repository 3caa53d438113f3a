"""A lock that no longer belongs to the recipe, or to the files that are here."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Project

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "tiny"


def test_a_changed_input_is_named_with_what_it_was_and_is(project):
    project.ok("lock")
    project.write("text.txt", "something else\n")
    answer = project.kolm("build")
    assert answer.status == 2
    first, expected, actual, advice = answer.err.splitlines()
    assert first == (
        "error: text.txt: input count.text of kolm.lock: has changed since it was locked"
    )
    assert expected.startswith("  expected: b3:")
    assert actual.startswith("  actual:   b3:")
    assert advice == "  Run `kolm lock`, and look at `kolm lock diff`."


def test_a_changed_recipe_is_named_by_its_section(project):
    project.ok("lock")
    project.replace("kolm.toml", "limit = 2", "limit = 3")
    answer = project.kolm("build", "--json")
    assert answer.status == 2
    error = json.loads(answer.out)["error"]
    assert error["code"] == "input.stale-lock"
    assert error["where"] == "recipe.step"


def test_a_check_of_the_lock_writes_nothing(project):
    project.ok("lock")
    assert project.ok("lock", "--check").err == "kolm.lock is up to date\n"
    before = project.read("kolm.lock")
    project.write("text.txt", "something else\n")
    answer = project.kolm("lock", "--check")
    assert answer.status == 2
    assert "the lock is not what would be locked now" in answer.err
    assert project.read("kolm.lock") == before


def test_a_check_without_a_lock_says_so(project):
    answer = project.kolm("lock", "--check")
    assert answer.status == 2
    assert "nothing is locked yet" in answer.err


def test_a_file_that_changes_after_a_no_op_build_is_noticed(project):
    project.ok("lock")
    project.ok("build")
    project.ok("build")
    project.write("text.txt", "x b a c b a\n")
    assert project.kolm("build").status == 2


def test_code_that_is_neither_here_nor_in_the_store_is_a_stale_lock(project, tmp_path):
    project.ok("lock")
    text = project.read("kolm.lock")
    at = text.index('step = "script"\ntree = "b3:') + len('step = "script"\ntree = "b3:')
    project.write("kolm.lock", text[:at] + "0" * 64 + text[at + 64 :])
    answer = project.kolm("build")
    assert answer.status == 2
    assert "code script: the code of the step script is not what was locked" in answer.err


def test_a_lock_that_is_no_lock_is_refused(project):
    project.write("kolm.lock", "version = 1\nversion = 1\n")
    answer = project.kolm("build")
    assert answer.status == 2
    assert answer.err.startswith("error: kolm.lock: ")


def test_a_lock_of_an_earlier_version_gets_all_code_anew(project):
    """LOCK-14: where the version is the present one, code that is locked stays."""
    project.ok("lock")
    now = project.read("kolm.lock")
    at = now.index('step = "script"\ntree = "b3:') + len('step = "script"\ntree = "b3:')
    other = now[:at] + "0" * 64 + now[at + 64 :]
    project.write("kolm.lock", other)
    project.ok("lock")
    assert project.read("kolm.lock") == other
    project.write("kolm.lock", other.replace("\nversion = 2\n", "\nversion = 1\n"))
    project.ok("lock")
    assert project.read("kolm.lock") == now


ROWS = "text,ward\na,b\n"


@pytest.mark.parametrize(
    ("path", "form", "wanted"),
    [
        ("rows.csv", "jsonl", ("one file named *.jsonl", "rows.csv", 'format = "csv"')),
        ("rows.csv", "parquet", ("one file named *.parquet", "rows.csv", 'format = "csv"')),
        ("rows", "jsonl", ("one file named *.jsonl", "b.csv, c.csv", 'format = "csv"')),
        ("rows/a.txt", "csv", ("one file named *.csv", "a.txt", "Rename the file")),
        ("rows", "csv", ("one file named *.csv", "b.csv, c.csv", "Name one file")),
    ],
)
def test_rows_of_another_format_are_refused_by_the_key_and_the_file(
    tmp_path, monkeypatch, path, form, wanted
):
    """LOCK-17: when they are locked, and not once something was built."""
    root = tmp_path / "tiny"
    shutil.copytree(EXAMPLE, root)
    monkeypatch.chdir(root)
    (root / "rows").mkdir()
    for name in ("rows.csv", "rows/a.txt", "rows/b.csv", "rows/c.csv"):
        (root / name).write_text(ROWS)
    recipe = (root / "kolm.toml").read_text()
    data = recipe[recipe.index("[data]") :]
    told = re.sub(r"^script = .*$", f'from = "path:./{path}"', data, count=1, flags=re.M)
    told = told.replace('format = "jsonl"', f'format = "{form}"', 1)
    (root / "kolm.toml").write_text(recipe.replace(data, told))
    refused = Project(root=root, store=tmp_path / "store").kolm("lock")
    assert refused.status == 2
    assert refused.err.startswith("error: kolm.toml: data.format: ")
    for words in wanted:
        assert words in refused.err
    assert not (root / "kolm.lock").exists()
