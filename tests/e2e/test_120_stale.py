"""A lock that no longer belongs to the recipe, or to the files that are here."""

import json


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
