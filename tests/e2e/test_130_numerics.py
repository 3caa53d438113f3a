"""Which arithmetic a lock names, and how an older lock keeps its own."""

import shutil
from pathlib import Path

from kolm_build.core.lock import parse_lock
from kolm_build.numerics import kernels

ROOT = Path(__file__).resolve().parent.parent.parent


def locked(project):
    return parse_lock(project.read("kolm.lock"))


def take_example(project):
    """The tiny example in place of the project, without the line that names its class."""
    for path in project.root.iterdir():
        path.unlink()
    for name in ("kolm.toml", "model.py", "rows.py"):
        shutil.copy(ROOT / "examples" / "tiny" / name, project.root / name)
    project.replace("kolm.toml", 'class = "portable-1"\n', "")


def test_a_lock_names_the_kernels_of_its_steps(project):
    """LOCK-11."""
    take_example(project)
    project.ok("lock")
    assert locked(project).numerics.cls == "portable-1"
    assert locked(project).kernels == kernels.sources()


def test_a_lock_of_scripts_names_none(project):
    """LOCK-11."""
    project.ok("lock")
    assert locked(project).kernels is None


def test_a_lock_that_names_other_kernels_than_its_code_is_refused(project):
    """LOCK-11."""
    take_example(project)
    project.ok("lock")
    project.replace("kolm.lock", str(kernels.sources()), "sha256:" + "0" * 64)
    answer = project.kolm("build", "base")
    assert answer.status == 2
    assert "numerics.kernels: the lock names other kernels" in answer.err
    assert "kolm lock --update code" in answer.err


def test_a_recipe_that_names_no_class_keeps_the_one_that_is_locked(project):
    """RECIPE-14."""
    take_example(project)
    project.replace("kolm.toml", "[numerics]", '[numerics]\nclass = "native-1"')
    project.ok("lock")
    before = project.read("kolm.lock")
    project.replace("kolm.toml", 'class = "native-1"\n', "")
    for command in (("lock",), ("lock", "--check"), ("build", "--dry-run")):
        project.ok(*command)
    assert project.read("kolm.lock") == before
    project.ok("lock", "--update", "numerics")
    assert locked(project).numerics.cls == "portable-1"
    assert locked(project).kernels == kernels.sources()
