"""What was built leaves the store as a plain folder or file, through the command line."""

import json
import os
import shutil
import stat
import sys
from dataclasses import replace

import pytest

from kolm_build.store.local import LocalStore
from tests.artifact.making import node
from tests.cli.command import kolm, kolm_process
from tests.e2e.conftest import FILES, Project
from tests.e2e.test_200_corrupt import rot

MAKE = """\
import os


def run(inputs, out, params):
    (out / "deep").mkdir()
    (out / "deep" / "table.csv").write_text("step,loss\\n1,2.0\\n")
    (out / "tool.sh").write_text("#!/bin/sh\\n")
    (out / "tool.sh").chmod(0o700)
    os.symlink("deep/table.csv", out / "link")
"""

STEP = """
[[step]]
name = "make"
step = "script"
inputs = {script = "path:./make.py"}
params = {entry = "make.py"}
"""


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A project, built, whose node `make` made a folder, a program and a link."""
    place = tmp_path_factory.mktemp("once")
    made = Project(root=place / "words", store=place / "store")
    made.root.mkdir()
    for name, text in FILES.items():
        made.write(name, text)
    made.write("kolm.toml", FILES["kolm.toml"] + STEP)
    made.write("make.py", MAKE)
    for command in ("lock", "build"):
        made.ok(command, "-C", str(made.root), "--store", str(made.store))
    return made


@pytest.fixture
def built(once, tmp_path, monkeypatch):
    """A copy of it; the working folder is its own."""
    made = Project(root=tmp_path / "words", store=tmp_path / "store")
    shutil.copytree(once.root, made.root)
    shutil.copytree(once.store, made.store)
    monkeypatch.chdir(made.root)
    monkeypatch.setenv("KOLM_STORE", str(made.store))
    return made


def listing(folder):
    """Every path below `folder` with its mode; a link with what it points to."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else oct(stat.S_IMODE(path.lstat().st_mode))
        for path in folder.rglob("*")
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content(project, node):
    outputs = json.loads(project.ok("show", node, "--json").out)["outputs"]
    return outputs["out"][0]["content"]


def test_a_node_becomes_a_plain_folder_whatever_the_umask_is(built, tmp_path):
    """CLI-36, CLI-37."""
    before = os.umask(0o077)
    try:
        told = built.ok("get", "make", str(tmp_path / "out"))
    finally:
        os.umask(before)
    assert listing(tmp_path / "out") == {
        "deep": "0o755",
        "deep/table.csv": "0o644",
        "link": "deep/table.csv",
        "tool.sh": "0o755",
    }
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert (tmp_path / "out/deep/table.csv").read_text() == "step,loss\n1,2.0\n"
    assert content(built, "make") in told.out
    assert told.err == "2 files of make.out\n"


@pytest.mark.parametrize("what", ["make", "make.out", "content", "derivation", "derivation.out"])
def test_a_node_and_its_digests_name_the_same(built, tmp_path, what):
    """CLI-36: digests need no recipe."""
    tree, shown = content(built, "make"), json.loads(built.ok("show", "make", "--json").out)
    digests = {"content": tree, "derivation": shown["derivation"]}
    text = what
    if what not in ("make", "make.out"):
        (built.root / "kolm.toml").unlink()
        text = digests[what.split(".")[0]] + what.removeprefix(what.split(".")[0])
    told = json.loads(built.ok("get", text, str(tmp_path / "out"), "--json").out)
    assert (told["content"], told["kind"]) == (tree, "folder")
    assert told["derivation"] == (None if what == "content" else shown["derivation"])
    with LocalStore.open(built.store) as store:
        assert str(store.tree_of_path(tmp_path / "out")) == tree


@pytest.mark.parametrize(
    ("what", "kind", "made"),
    [
        ("make/deep", "folder", ["table.csv"]),
        ("make.out/deep/table.csv", "file", "step,loss\n1,2.0\n"),
        ("top/top.txt", "file", "a\nb"),
    ],
)
def test_a_path_means_one_folder_or_file_in_it(built, tmp_path, what, kind, made):
    """CLI-36, CLI-39."""
    dest = tmp_path / "out"
    told = json.loads(built.ok("get", what, str(dest), "--json").out)
    assert (names(dest) if kind == "folder" else dest.read_text()) == made
    assert told == {
        "bytes": sum(one.stat().st_size for one in ([dest] if kind == "file" else dest.iterdir())),
        "content": told["content"],
        "derivation": told["derivation"],
        "files": 1,
        "kind": kind,
        "of": what if ".out" in what else what.replace("/", ".out/", 1),
        "path": str(dest),
    }
    assert built.ok("show", content(built, what.split("/")[0].split(".")[0])).status == 0


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["mak"], 2, "make"),
        (["make.nothing"], 2, "out"),
        (["make/tool"], 2, "tool.sh"),
        (["make/deep/table.csv/more"], 2, "there is no such file or folder"),
        (["make/link"], 2, "there is no such file or folder"),
        (["b3:" + "0" * 64], 4, "neither a tree nor a derivation nor a file in the store"),
        (["b3:" + "0" * 64 + ".out"], 4, "no derivation in the store"),
        (["b3:12"], 2, "not a digest"),
    ],
)
def test_what_is_not_there_is_told(built, tmp_path, argv, status, said):
    """CLI-36."""
    answer = built.kolm("get", *argv, str(tmp_path / "out"))
    assert answer.status == status, answer
    assert said in answer.err
    assert names(tmp_path) == ["home", "store", "words"]


def test_the_bytes_of_a_file_are_got_by_their_digest(built, tmp_path):
    """CLI-36, CLI-39: and a digest of bytes has no output and no path in it."""
    told = json.loads(built.ok("get", "top/top.txt", str(tmp_path / "one"), "--json").out)
    by_digest = built.ok("get", told["content"], str(tmp_path / "other"), "--json").out
    assert json.loads(by_digest) == told | {
        "derivation": None,
        "of": told["content"],
        "path": str(tmp_path / "other"),
    }
    assert (tmp_path / "other").read_bytes() == (tmp_path / "one").read_bytes()
    for end in (".out", "/x"):
        answer = built.kolm("get", told["content"] + end, str(tmp_path / "x"))
        assert (answer.status, "in the store" in answer.err) == (4, True)


def test_one_file_goes_to_stdout_and_what_is_said_of_it_to_stderr(built):
    """CLI-38, CLI-1."""
    for what in ("make/deep/table.csv", "make/deep"):
        done = kolm_process("get", what, "-", cwd=built.root)
        if what.endswith(".csv"):
            assert (done.status, done.out) == (0, "step,loss\n1,2.0\n")
            assert done.err.endswith("1 file of make.out/deep/table.csv\n")
        else:
            assert (done.status, done.out) == (2, "")
            assert "a folder cannot be written to stdout" in done.err
    assert kolm("get", "make/deep/table.csv", "-", "--json").status == 2
    rot(built, "length", "length.txt")
    done = kolm_process("get", "length/length.txt", "-", cwd=built.root)
    assert (done.status, done.out) == (4, "")
    assert not (built.root / "-").exists()


def test_an_output_that_a_derivation_lacks_is_told_with_those_it_has(built, tmp_path):
    """CLI-36."""
    shown = json.loads(built.ok("show", "make", "--json").out)
    answer = built.kolm("get", shown["derivation"] + ".metrics", str(tmp_path / "out"))
    assert answer.status == 2
    assert "make has no such output\n  expected: out" in answer.err


def test_of_several_outputs_none_is_taken(tmp_path):
    """CLI-36."""
    made = replace(node("train-1", "sft", {}), outputs=(("adapter", None), ("metrics", None)))
    with LocalStore.open(tmp_path / "store") as store:
        digest = store.put_derivation(made)
    answer = kolm("get", str(digest), str(tmp_path / "out"), "--store", str(tmp_path / "store"))
    assert answer.status == 2
    assert "which one?\n  expected: train-1.adapter or train-1.metrics" in answer.err
    assert not (tmp_path / "out").exists()


def test_who_names_an_artifact_is_sent_to_export(tmp_path):
    (tmp_path / "x.kolm").write_bytes(b"")
    answer = kolm("get", str(tmp_path / "x.kolm"), str(tmp_path / "out"))
    assert (answer.status, "x.kolm --format safetensors" in answer.err) == (2, True)


def test_what_was_never_built_is_not_built_and_the_command_that_does_is_named(project, tmp_path):
    """CLI-36."""
    project.ok("lock")
    answer = project.kolm("get", "count", str(tmp_path / "out"))
    assert (answer.status, answer.out) == (4, "")
    assert "count.out: it is not in the store: never built\n  `kolm build count.out`" in answer.err
    assert "an input is not known yet" in project.kolm("get", "top", str(tmp_path / "out")).err
    project.ok("build", "count.out")
    project.ok("get", "count", str(tmp_path / "out"))
    assert names(tmp_path / "out") == ["counts.json"]


def test_what_was_collected_is_told(built, tmp_path):
    """CLI-36."""
    (root,) = [line.split()[0] for line in built.ok("store", "roots").out.splitlines()]
    built.ok("store", "roots", "--remove", root)
    built.ok("store", "gc")
    answer = built.kolm("get", "count", str(tmp_path / "out"))
    assert (answer.status, "its bytes are gone" in answer.err) == (4, True)


@pytest.mark.parametrize("what", ["length", "length/length.txt"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_damaged_bytes_do_not_leave_the_store(built, tmp_path, what, force):
    """CLI-37, CLI-38: and what is there stays."""
    rot(built, "length", "length.txt")
    if force:
        (tmp_path / "out").write_text("mine")
    answer = built.kolm("get", what, str(tmp_path / "out"), *force)
    assert (answer.status, "an object's bytes changed" in answer.err) == (4, True)
    assert names(tmp_path) == ["home", *(["out"] if force else []), "store", "words"]
    assert not force or (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("what", ["make", "make/deep/table.csv"])
@pytest.mark.parametrize("there", ["folder", "file", "dangling", "empty"])
def test_what_is_there_stays_unless_told(built, tmp_path, what, there):
    """CLI-38."""
    dest = tmp_path / "out"
    if there == "file":
        dest.write_text("mine")
    elif there == "dangling":
        dest.symlink_to("nowhere")
    else:
        dest.mkdir()
        if there == "folder":
            (dest / "mine").write_text("mine")
    before = dest.readlink() if there == "dangling" else dest.stat().st_ino
    answer = built.kolm("get", what, str(dest))
    assert (answer.status, "something is there already" in answer.err) == (2, True)
    assert before == (dest.readlink() if there == "dangling" else dest.stat().st_ino)
    built.ok("get", what, str(dest), "--force")
    assert not dest.is_symlink()
    assert dest.is_dir() == (what == "make")
    assert not (dest / "mine").exists()
    assert names(tmp_path) == ["home", "out", "store", "words"]


@pytest.mark.parametrize("where", [".", "..", "../store", "../words"])
def test_the_project_the_store_and_the_working_folder_are_never_replaced(built, where):
    """CLI-38."""
    answer = built.kolm("get", "make", where, "--force")
    assert (answer.status, "this folder is not replaced" in answer.err) == (2, True)
    assert built.read("make.py") == MAKE


def test_a_destination_in_no_folder_is_told(built, tmp_path):
    answer = built.kolm("get", "make", str(tmp_path / "no" / "out"))
    assert (answer.status, "there is no such folder" in answer.err) == (2, True)


def test_nothing_heavy_is_imported_to_copy_bytes(built, tmp_path):
    built.ok("get", "make", str(tmp_path / "out"))
    program = (
        "import sys; from kolm_build.surfaces.cli import main;"
        "status = main(sys.argv[1:]); sys.exit(status or 'torch' in sys.modules)"
    )
    words = ["-c", program, "get", "make", str(tmp_path / "again")]
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, *words]) == 0


def test_a_store_is_only_read_and_none_is_made(built, tmp_path):
    """CLI-36: so a store that cannot be written gives as well."""

    def found():
        # SQLite keeps what it shares with other readers beside its file, where it may.
        files = [path for path in built.store.rglob("*") if "-" not in path.suffix]
        return {path: path.stat().st_mtime_ns for path in files if path != built.store}

    before = found()
    built.ok("get", "make", str(tmp_path / "out"))
    assert found() == before
    nowhere = tmp_path / "nowhere"
    answer = built.kolm("get", "make", str(tmp_path / "again"), "--store", str(nowhere))
    assert (answer.status, "there is no store here" in answer.err) == (4, True)
    assert not nowhere.exists()
