"""A store whose bytes rot, seen from the command line."""

import json

from kolm_build.core.digest import Digest


def rot(project, node: str, file: str) -> None:
    """Flip a bit of the file that `node` made."""
    content = json.loads(project.ok("show", node, "--json").out)["outputs"]["out"][0]["content"]
    entries = json.loads(project.ok("show", content, "--json").out)["entries"]
    digest = Digest.parse(entries[file].split()[1])
    path = project.store / "cas" / digest.hex[:2] / digest.hex
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def test_a_corrupt_object_is_found_repaired_and_built_again(project):
    project.ok("lock")
    built = project.ok("build").out
    rot(project, "length", "length.txt")
    found = project.kolm("store", "fsck")
    assert found.status == 4
    assert "corrupt" in found.out
    assert project.kolm("store", "fsck", "--repair").status in (0, 4)
    assert project.ok("store", "fsck").out.endswith("clean\n")
    again = project.ok("build")
    assert again.built() == ["length"]
    assert again.out == built


def test_a_corrupt_input_of_a_step_is_an_error_that_names_it(project):
    project.ok("lock")
    project.ok("build", "count")
    rot(project, "count", "counts.json")
    answer = project.kolm("build")
    assert answer.status == 4
    assert "Traceback" not in answer.err


def test_a_folder_that_is_no_store_is_refused(project, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    answer = project.kolm("lock", "--store", str(tmp_path / "mine"))
    assert answer.status == 4
    assert "thesis.txt" in answer.err


def test_repair_fetches_what_a_substituter_has(project, tmp_path):
    """STORE-26, STORE-33."""
    project.ok("lock")
    project.ok("build")
    project.ok("copy", "--closure", "--no-sign", "--to", f"file://{tmp_path / 'cache'}")
    for path in (project.store / "tree").glob("*/*"):
        path.unlink()
    refused = project.kolm("store", "fsck", "--substituter", f"file://{tmp_path / 'cache'}")
    assert "only with --repair" in refused.err
    project.ok("store", "fsck", "--repair", "--substituter", f"file://{tmp_path / 'cache'}")
    assert project.ok("store", "fsck", "--deep").out.endswith("clean\n")
    assert project.ok("build", "--offline").built() == []
