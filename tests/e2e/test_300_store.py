import json

from kolm_build.store.local import LocalStore
from kolm_build.surfaces.building import prepare
from kolm_build.surfaces.project import open_project, read_lock
from kolm_build.surfaces.story import local_inputs


def test_what_the_last_build_needs_is_kept_and_the_rest_goes(project):
    project.ok("lock")
    project.ok("build")
    project.replace("count.py", '"words")', '"words of text")')
    project.write("text.txt", "another text\n")
    project.ok("lock")
    project.ok("build")
    plan = json.loads(project.ok("store", "gc", "--dry-run", "--json").out)
    assert plan["dead"] > 0
    done = json.loads(project.ok("store", "gc", "--json").out)
    assert (done["dead"], done["freed_bytes"]) == (plan["dead"], plan["freed_bytes"])
    assert project.ok("build").built() == []
    assert project.ok("store", "fsck").out.endswith("clean\n")


def test_without_its_lock_a_project_keeps_nothing(project):
    project.ok("lock")
    project.ok("build")
    (root,) = [line.split()[0] for line in project.ok("store", "roots").out.splitlines()]
    assert root.startswith("words-")
    (project.root / "kolm.lock").unlink()
    project.ok("store", "gc")
    assert json.loads(project.ok("store", "du", "--json").out)["objects"] == 0
    project.ok("lock")
    assert sorted(project.ok("build").built()) == ["count", "length", "top"]


def test_a_root_can_be_removed_by_name(project):
    project.ok("lock")
    project.ok("build")
    name = json.loads(project.ok("store", "roots", "--json").out)["name"]
    assert project.ok("store", "roots", "--remove", name).out == ""
    answer = project.kolm("store", "roots", "--remove", name)
    assert (answer.status, answer.err) == (2, f"error: {name}: there is no such root\n")


def test_logs_and_derivations_are_never_dropped(project):
    project.ok("lock")
    project.ok("build")
    project.ok(
        "store", "roots", "--remove", json.loads(project.ok("store", "roots", "--json").out)["name"]
    )
    project.ok("store", "gc")
    assert project.ok("log", "count").out == "counted 3 words\n"


def test_du_shows_roots_and_the_whole(project):
    project.ok("lock")
    project.ok("build")
    lines = project.ok("store", "du").out.splitlines()
    assert lines[0].split() == ["files", "on", "disk", "alone", "root"]
    assert lines[-1].endswith("objects")


def test_show_tells_of_nodes_trees_and_derivations(project):
    project.ok("lock")
    project.ok("build")
    node = json.loads(project.ok("show", "count", "--json").out)
    assert node["step"] == "script"
    assert node["params"] == {"entry": "count.py"}
    derivation = json.loads(project.ok("show", node["derivation"], "--json").out)
    assert derivation["derivation"] == node["derivation"]
    tree = project.ok("show", node["outputs"]["out"][0]["content"]).out
    assert "counts.json: " in tree
    missing = project.kolm("show", "b3:" + "0" * 64)
    assert missing.status == 4


def test_diff_names_paths_and_exits_16(project):
    project.ok("lock")
    project.ok("build")
    same = project.ok("diff", "count", "count")
    assert same.out == "identical\n"
    answer = project.kolm("diff", "count", "top")
    assert answer.status == 16
    assert answer.out.splitlines()[0].startswith("counts.json: b3:")
    assert answer.out.splitlines()[0].endswith(" -> absent")


def test_a_damaged_index_is_said_and_made_again_by_the_command_that_the_message_names(project):
    project.ok("lock", "--store", str(project.store))
    project.ok("build", "--store", str(project.store))
    (project.store / "db.sqlite").write_bytes(b"no database" * 1000)
    broken = project.kolm("store", "fsck", "--store", str(project.store))
    assert broken.status == 4
    assert "`kolm store fsck --rebuild-index`" in broken.err
    mended = project.ok("store", "fsck", "--rebuild-index", "--deep", "--store", str(project.store))
    assert mended.out.endswith(": clean\n")
    again = project.ok("build", "--store", str(project.store))
    assert again.built() == []


def test_what_a_build_is_about_to_read_is_kept_from_a_collector(project):
    """STORE-20: from the first look on, before any root names it."""
    project.ok("lock")
    here = open_project(project.root, lock=None)
    lock = read_lock(here.lock_file)
    needed = {*lock.code.values(), *(one.tree for one in local_inputs(lock))}
    with LocalStore.open(project.store) as store:
        assert store.has_trees(needed) == needed
        prepare(here, store)
        with LocalStore.open(project.store) as collector:
            collector.collect(dry_run=False)
        assert store.has_trees(needed) == needed
