"""Code trees hold what a step can import, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kolm_build
from kolm_build.engine.code import code_tree
from kolm_build.errors import InvalidRecordError
from kolm_build.steps.table import STEPS

PACKAGE = Path(kolm_build.__file__).parent


def project(tmp_path: Path, files: dict[str, str]) -> Path:
    root = tmp_path / "kolm_build"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


FILES = {
    "__init__.py": "__version__ = '1'\n",
    "errors.py": "X = 1\n",
    "core/__init__.py": "",
    "core/cbor.py": "from kolm_build.errors import X\n",
    "core/tree.py": "import json\n",
    "core/deep.py": "",
    "steps/__init__.py": "",
    "steps/one.py": "def main(argv):\n    from kolm_build.core import cbor, deep\n",
    "steps/other.py": "",
    "surfaces/__init__.py": "",
    "surfaces/cli.py": "",
}


def test_a_code_tree_holds_the_steps_import_closure(tmp_path):
    """ENG-13. A code tree MUST hold every module of the project the step can import, no other."""
    assert sorted(code_tree("one", project(tmp_path, FILES))) == [
        "kolm_build/__init__.py",
        "kolm_build/core/__init__.py",
        "kolm_build/core/cbor.py",
        "kolm_build/core/deep.py",
        "kolm_build/errors.py",
        "kolm_build/steps/__init__.py",
        "kolm_build/steps/one.py",
        "step.py",
    ]


@pytest.mark.parametrize("changed", ["surfaces/cli.py", "steps/other.py", "core/tree.py"])
def test_what_the_step_cannot_import_does_not_change_its_code(tmp_path, changed):
    before = code_tree("one", project(tmp_path, FILES))
    assert code_tree("one", project(tmp_path, FILES | {changed: "Y = 2\n"})) == before


def test_a_new_version_alone_does_not_change_the_code(tmp_path):
    before = code_tree("one", project(tmp_path, FILES))
    newer = FILES | {"__init__.py": "__version__ = '2'\n"}
    assert code_tree("one", project(tmp_path, newer)) == before


def test_what_the_step_can_import_changes_its_code(tmp_path):
    before = code_tree("one", project(tmp_path, FILES))
    assert code_tree("one", project(tmp_path, FILES | {"errors.py": "X = 2\n"})) != before


def test_what_only_a_type_checker_reads_is_no_import(tmp_path):
    """ENG-13."""
    only = "if TYPE_CHECKING:\n    from kolm_build.core.tree import X\n"
    files = FILES | {"steps/one.py": only + "else:\n    import kolm_build.core.deep\n"}
    assert "kolm_build/core/deep.py" in code_tree("one", project(tmp_path, files))
    assert "kolm_build/core/tree.py" not in code_tree("one", project(tmp_path, files))


DECLARING = FILES | {
    "errors.py": "CODE_DATA = ('data/**/*.h', 'table.json')\n",
    "data/one.h": "1",
    "data/deep/two.h": "2",
    "data/notes.txt": "",
    "table.json": "{}",
}


def test_files_that_a_module_declares_are_part_of_its_code(tmp_path):
    """ENG-14."""
    files = code_tree("one", project(tmp_path, DECLARING))
    assert sorted(files.keys() - code_tree("one", project(tmp_path, FILES)).keys()) == [
        "kolm_build/data/deep/two.h",
        "kolm_build/data/one.h",
        "kolm_build/table.json",
    ]
    changed = project(tmp_path, DECLARING | {"data/deep/two.h": "3"})
    assert code_tree("one", changed) != files
    assert code_tree("other", changed).keys() & files.keys() == {
        "step.py",
        "kolm_build/__init__.py",
        "kolm_build/steps/__init__.py",
    }


@pytest.mark.parametrize(
    ("literal", "where"), [("('nothing/*.h',)", "nothing/*.h"), ("['x.h']", "line 1")]
)
def test_a_declaration_that_names_nothing_is_refused(tmp_path, literal, where):
    """ENG-14."""
    files = FILES | {"errors.py": f"CODE_DATA = {literal}\n"}
    with pytest.raises(InvalidRecordError) as caught:
        code_tree("one", project(tmp_path, files))
    assert caught.value.where == where


@pytest.mark.parametrize("step", ["sft", "merge", "evaluate"])
def test_the_code_of_a_step_that_computes_holds_the_kernels_sources(step):
    """NUM-101."""
    files = code_tree(step, PACKAGE)
    held = {path for path in files if path.startswith("kolm_build/numerics/csrc/")}
    sources = (PACKAGE / "numerics" / "csrc").glob("*.*")
    there = {f"kolm_build/{path.relative_to(PACKAGE).as_posix()}" for path in sources}
    assert held == there
    assert "kolm_build/numerics/csrc/flags.cmake" in held
    assert not [path for path in files if path.endswith(".so")]


def test_a_step_may_not_use_the_version(tmp_path):
    files = FILES | {"steps/one.py": "from kolm_build import __version__\n"}
    with pytest.raises(InvalidRecordError, match=r"may not use kolm_build\.__version__"):
        code_tree("one", project(tmp_path, files))


def test_an_import_of_what_is_not_there_is_named(tmp_path):
    files = FILES | {"steps/one.py": "import kolm_build.core.nothing\n"}
    with pytest.raises(InvalidRecordError, match=r"kolm_build\.core\.nothing"):
        code_tree("one", project(tmp_path, files))


def test_the_start_runs_the_step_from_its_own_tree(tmp_path):
    files = FILES | {
        "steps/one.py": "def main(argv):\n    print(__file__, argv[1:])\n    return 7\n"
    }
    for name, data in code_tree("one", project(tmp_path / "source", files)).items():
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-s", "-P", "-B", str(tmp_path / "code" / "step.py"), "request"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 7
    assert done.stdout == f"{tmp_path}/code/kolm_build/steps/one.py ['request']\n"


def test_no_step_of_the_project_can_import_the_engine_or_the_surfaces():
    for path in (PACKAGE / "steps").glob("[a-z]*.py"):
        if path.stem != "table":
            for name in code_tree(path.stem, PACKAGE):
                assert not name.startswith(
                    ("kolm_build/engine", "kolm_build/surfaces", "kolm_build/store")
                )


READS_MODELS = {
    "__init__",
    "attached",
    "chat",
    "distribution",
    "draws",
    "files",
    "gated",
    "generate",
    "loading",
    "mapped",
    "mixture",
    "products",
    "quantised",
    "ragged",
    "stored",
    "template",
    "virtual",
    "weights",
    "window",
}
"""Modules of the runtime that steps may hold."""


@pytest.mark.parametrize("step", ["sft", "grpo", "evaluate", "quantise", "export-onnx", "combine"])
def test_a_step_holds_nothing_that_only_an_answer_needs(step):
    """GEN-64."""
    runtime = Path("kolm_build/runtime")
    held = {Path(name) for name in code_tree(STEPS[step].module, PACKAGE)}
    assert {one.stem for one in held if one.parent == runtime} <= READS_MODELS
