import json


def test_a_second_build_runs_no_step(project):
    project.ok("lock")
    first = project.ok("build")
    assert sorted(first.built()) == ["count", "length", "top"]
    second = project.ok("build")
    assert second.built() == []
    assert second.out == first.out


def test_the_store_can_be_named_in_three_ways(project, tmp_path, monkeypatch):
    """CLI-11."""
    monkeypatch.setenv("KOLM_STORE", str(tmp_path / "by-variable"))
    project.ok("lock", "--store", str(tmp_path / "by-option"))
    project.ok("lock")
    monkeypatch.delenv("KOLM_STORE")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "README.md").write_text("# The store\n")
    project.ok("lock")
    for name in ("by-variable", "by-option", "store"):
        assert (tmp_path / name / "format").exists()
    (tmp_path / "store" / "README.md").write_text("# Groceries\n")
    project.ok("lock")
    assert (tmp_path / "home/.local/share/kolm/store/format").exists()


def test_events_are_json_lines(project):
    """CLI-4."""
    project.ok("lock")
    answer = project.ok("build", "--json")
    assert answer.err == ""
    events = [json.loads(line) for line in answer.out.splitlines()]
    assert {event["event"] for event in events} == {"started", "built", "done"}
    assert set(events[-1]["targets"]) == {"top", "length"}


def test_a_plan_is_what_would_be_done_and_does_nothing(project):
    project.ok("lock")
    answer = project.ok("build", "--dry-run")
    assert answer.err == "3 to build, 0 to reuse\n"
    assert "top              build: an input is not known yet" in answer.out
    assert sorted(project.ok("build").built()) == ["count", "length", "top"]
    nodes = json.loads(project.ok("build", "--dry-run", "--json").out)["nodes"]
    assert {(node["node"], node["action"]) for node in nodes} >= {("top", "reuse")}


def test_one_target_builds_what_it_needs_and_nothing_else(project):
    project.ok("lock")
    assert project.ok("build", "count").built() == ["count"]
    assert project.ok("build", "top.out").built() == ["top"]


def test_an_unknown_target_is_refused_with_the_nearest_one(project):
    project.ok("lock")
    answer = project.kolm("build", "cuont")
    assert answer.status == 2
    assert "Did you mean 'count'?" in answer.err


def test_a_check_builds_everything_again_and_finds_it_the_same(project):
    project.ok("lock")
    project.ok("build")
    answer = project.ok("build", "--check")
    assert answer.err.count("the same bytes again") == 3


def test_a_failing_step_says_what_went_wrong_and_keeps_its_log(project):
    project.write(
        "top.py", "def run(inputs, out, params):\n    print('here')\n    raise ValueError('no')\n"
    )
    project.ok("lock")
    answer = project.kolm("build")
    assert answer.status == 8
    assert "top" in answer.err
    assert "length           built" in answer.err
    assert "here" in project.ok("log", "top").out


def test_a_script_that_is_not_reproducible_is_found_by_a_check(project):
    project.replace("length.py", "str(len(text))", "str(__import__('os').urandom(4))")
    project.ok("lock")
    project.ok("build")
    answer = project.kolm("build", "--check")
    assert answer.status == 16
    assert "length.out: built again, it is not the same, first in length.txt" in answer.err
    again = project.kolm("build")
    assert again.status == 16
    assert "contested" in again.err or "claimed" in again.err


def test_a_build_without_a_sandbox_has_to_be_asked_for(project):
    project.ok("lock")
    project.ok("build", "--sandbox", "none")
    assert (
        json.loads(project.ok("show", "top", "--json").out)["outputs"]["out"][0]["circumstances"][
            "sandbox"
        ]
        == "none"
    )


def test_a_target_is_for_recipes_that_make_a_model(project):
    """CLI-30: of other recipes nobody can say whether they fit."""
    project.ok("lock")
    answer = project.kolm("build", "--target", "raspberry-pi-5")
    assert answer.status == 2
    assert "makes no model" in answer.err
    assert answer.built() == []
