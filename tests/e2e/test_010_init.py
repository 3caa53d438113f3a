import tomllib

from kolm_build.core.recipe import parse_recipe


def test_a_starter_recipe_is_one_that_kolm_reads(project, tmp_path):
    project.ok("init", str(tmp_path / "new"))
    recipe = parse_recipe((tmp_path / "new" / "kolm.toml").read_text())
    assert recipe.name == "new"
    assert [source.name for source in recipe.sources] == ["base", "data"]


def test_what_is_not_locked_is_not_built(project):
    answer = project.kolm("build")
    assert answer.status == 2
    assert answer.err == "error: kolm.lock: nothing is locked yet\n  Run `kolm lock` first.\n"


def test_outside_of_a_project_kolm_says_how_to_make_one(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = project.kolm("build")
    assert answer.status == 2
    assert "there is no kolm.toml here or above" in answer.err
    assert "`kolm init` writes one" in answer.err


def test_the_project_is_found_from_a_folder_below(project, monkeypatch):
    """CLI-9."""
    project.ok("lock")
    (project.root / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(project.root / "deep" / "er")
    project.ok("build")
    monkeypatch.chdir("/")
    project.ok("build", "-C", str(project.root))


def test_locking_twice_gives_the_same_file(project):
    first = project.ok("lock")
    assert first.err == "kolm.lock: 5 inputs and 2 distributions locked\n"
    before = project.read("kolm.lock")
    assert project.ok("lock").err == "kolm.lock: nothing changed\n"
    assert project.read("kolm.lock") == before
    assert [one["name"] for one in tomllib.loads(before)["input"]] == [
        "count.script", "count.text", "length.script", "length.text", "top.script",
    ]  # fmt: skip


def test_a_missing_source_is_named(project):
    (project.root / "text.txt").unlink()
    answer = project.kolm("lock")
    assert answer.status == 2
    assert answer.err.startswith("error: text.txt: a source that is not there\n")


def test_an_update_of_what_is_not_locked_is_refused(project):
    answer = project.kolm("lock", "--update", "bse")
    assert answer.status == 2
    assert "expected: one of code, count.script" in answer.err
    assert not (project.root / "kolm.lock").exists()


def test_a_recipe_with_a_wrong_key_writes_nothing(project):
    project.replace("kolm.toml", "[environment]", "[enviroment]")
    answer = project.kolm("lock")
    assert answer.status == 2
    assert answer.err.startswith("error: kolm.toml: enviroment: unknown key\n")
    assert "Did you mean 'environment'?" in answer.err
    assert not (project.root / "kolm.lock").exists()
