"""Early cutoff, and what `kolm explain` and `kolm lock diff` say of it."""

import json
import subprocess


def relock(project, name: str, old: str, new: str) -> None:
    project.replace(name, old, new)
    project.ok("lock")


def test_a_reformatted_script_that_gives_the_same_bytes_rebuilds_nothing_below(project):
    project.ok("lock")
    project.ok("build")
    relock(project, "count.py", "import json\n", "import json  # a remark\n")
    before = project.ok("explain").out
    assert before.startswith("since the last build:\ncount: changed\n  inputs.script: b3:")
    assert "(path:./count.py)" in before
    assert before.endswith("to build: count, top\nunless the same bytes come out above: top\n")
    answer = project.ok("build")
    assert answer.built() == ["count"]
    assert "top              cached (its inputs came out the same)" in answer.err
    after = project.ok("explain").out
    assert "count: changed (built)" in after
    assert after.endswith("same bytes came out, so these were not built again: top\n")


def test_explain_gives_root_causes_only(project):
    project.ok("lock")
    project.ok("build")
    relock(project, "text.txt", "a b a", "a b z a")
    told = json.loads(project.ok("explain", "--json").out)
    assert told["about"] == "next"
    assert [cause["node"] for cause in told["causes"]] == ["count", "length"]
    assert told["follows"] == {"top": ["count"]}
    one = project.ok("explain", "top").out
    assert "count: changed" in one
    assert "length" not in one


def test_before_the_first_build_everything_is_new(project):
    project.ok("lock")
    assert project.ok("explain").out.startswith("nothing was built here yet:\ncount: is new\n")


def test_a_node_that_is_gone_is_said_to_be_gone(project):
    project.ok("lock")
    project.ok("build")
    recipe = project.read("kolm.toml")
    project.write("kolm.toml", recipe[: recipe.index('[[step]]\nname = "length"')])
    project.ok("lock")
    assert "length: is no more\n" in project.ok("explain").out


def test_why_shows_the_way_from_one_node_to_another(project):
    project.ok("lock")
    assert project.ok("why", "top", "count").out == "top\n└─ counts: count\n"
    assert project.ok("why", "length", "count").out == "length does not depend on count\n"
    path = json.loads(project.ok("why", "top", "count", "--json").out)["path"]
    assert path == [{"node": "top", "role": ""}, {"node": "count", "role": "counts"}]


def test_a_lock_diff_says_what_may_and_what_cannot_change(project):
    project.ok("lock")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(project.root)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    assert project.ok("lock", "diff").out.splitlines()[0] == "no difference"
    relock(project, "count.py", "import json\n", "import json  # a remark\n")
    told = project.ok("lock", "diff").out
    assert "code count.script: path:./count.py b3:" in told
    assert "because: count (inputs.script)\n" in told
    assert "may change: count, top\n" in told
    assert "cannot change: length\n" in told
    nodes = json.loads(project.ok("lock", "diff", "HEAD", "--json").out)["nodes"]
    assert nodes == {"count": "may change", "length": "cannot change", "top": "may change"}


def test_a_lock_diff_with_nothing_to_compare_says_so(project):
    project.ok("lock")
    answer = project.kolm("lock", "diff", "--", "--output=x")
    assert answer.status == 2
    assert "neither a lock file nor a git revision with a kolm.lock" in answer.err
    assert not (project.root / "x").exists()


def test_two_lock_files_can_be_compared(project, tmp_path):
    project.ok("lock")
    (tmp_path / "old.lock").write_bytes((project.root / "kolm.lock").read_bytes())
    relock(project, "text.txt", "a b a", "a b z a")
    answer = project.ok("lock", "diff", str(tmp_path / "old.lock"), "kolm.lock")
    assert "data count.text: path:./text.txt b3:" in answer.out
    assert "may change: count, top, length\n" in answer.out


def test_a_lock_of_another_recipe_is_compared_as_far_as_it_goes(project, tmp_path):
    project.ok("lock")
    (tmp_path / "old.lock").write_bytes((project.root / "kolm.lock").read_bytes())
    relock(project, "kolm.toml", "limit = 2", "limit = 3")
    answer = project.ok("lock", "diff", str(tmp_path / "old.lock"), "kolm.lock")
    assert "recipe [step]: b3:" in answer.out
    assert "the recipe of one side is not here" in answer.err


def test_a_lock_may_lie_elsewhere_and_has_its_outputs_beside_it(project, tmp_path):
    """CLI-10."""
    lock = tmp_path / "locks" / "words.lock"
    lock.parent.mkdir()
    project.ok("lock", "--lock", str(lock))
    project.ok("build", "--lock", str(lock), "--record")
    assert sorted(path.name for path in lock.parent.iterdir()) == ["words.lock", "words.outputs"]
    assert not (project.root / "kolm.lock").exists()
    assert project.ok("rebuild", "--lock", str(lock)).out.count("identical: ") == 2


def test_after_a_first_build_of_some_nodes_the_rest_is_said_to_be_unbuilt(project):
    """And once it is built, what each build did is told."""
    project.ok("lock")
    project.ok("build", "count")
    told = project.ok("explain").out
    assert told.startswith("nothing changed since the last build, and none before it is known:\n")
    assert told.endswith(("not built yet: length, top\n", "not built yet: top, length\n"))
    project.ok("build")
    told = project.ok("explain").out
    assert "not built yet" not in told
    for node in ("count", "length", "top"):
        assert f"{node}: is new (built)\n" in told


def test_one_change_of_a_lock_is_one(project):
    project.ok("lock")
    project.replace("kolm.toml", "limit = 2", "limit = 3")
    answer = project.kolm("lock", "--check")
    assert (answer.status, "more)" in answer.err) == (2, False)
    assert project.ok("lock").err == "kolm.lock: 1 change\n"
    project.replace("count.py", "import json\n", "import json  # a remark\n")
    assert "what would be locked now (and 1 change more)" in project.kolm("lock", "--check").err
