import pytest

from kolm_build.steps import script
from tests.steps_data.calling import run_step


def ran(tmp_path, text, *, inputs=None, **params):
    folder = tmp_path / "code"
    folder.mkdir(exist_ok=True)
    (folder / "rows.py").write_text(text, "utf-8")
    return run_step(
        script,
        tmp_path,
        inputs={"script": folder, **(inputs or {})},
        params={"entry": "rows.py", **params},
    )


def test_the_script_gets_the_other_inputs_the_folder_and_the_other_params(tmp_path):
    """STEP-7, STEP-8."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("seen")
    text = (
        "def run(inputs, out, params):\n"
        "    found = (inputs['source'] / 'a.txt').read_text()\n"
        "    (out / 'b.txt').write_text(f'{found} {sorted(inputs)} {sorted(params.items())}')\n"
    )
    done = ran(tmp_path, text, inputs={"source": tmp_path / "in"}, count=3)
    assert (done.out / "b.txt").read_text() == "seen ['source'] [('count', 3)]"


def test_a_module_beside_the_script_can_be_imported(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "kolm_neighbour.py").write_text("WORD = 'hello'\n")
    text = (
        "import kolm_neighbour\n"
        "def run(inputs, out, params):\n"
        "    (out / 'a').write_text(kolm_neighbour.WORD)\n"
    )
    assert (ran(tmp_path, text).out / "a").read_text() == "hello"


def test_an_exception_is_told_by_the_scripts_own_line(tmp_path):
    """STEP-9."""
    text = (
        "def half(row):\n    return int(row) // 2\n\n"
        "def run(inputs, out, params):\n    half('three')\n"
    )
    refusal = ran(tmp_path, text).refusal
    assert refusal["file"] == "rows.py"
    assert refusal["where"] == "line 2, in half"
    assert refusal["actual"] == "return int(row) // 2"
    assert refusal["reason"].startswith("the script raised ValueError: invalid literal")
    assert "kolm_build" not in str(refusal)


def test_the_way_to_the_exception_is_in_the_log(tmp_path):
    text = "def f():\n    1 / 0\n\ndef run(inputs, out, params):\n    f()\n"
    assert ran(tmp_path, text).logged() == "rows.py:5, in run: f()\nrows.py:2, in f: 1 / 0"


def test_an_exit_is_an_error_and_not_a_success(tmp_path):
    refusal = ran(tmp_path, "import sys\ndef run(inputs, out, params):\n    sys.exit(0)\n").refusal
    assert refusal["reason"] == "the script raised SystemExit: 0"


def test_a_syntax_error_names_the_line(tmp_path):
    refusal = ran(tmp_path, "def run(inputs, out, params):\n    return )\n").refusal
    assert (refusal["file"], refusal["where"]) == ("rows.py", "line 2")
    assert refusal["actual"] == "return )"


def test_a_script_without_run_is_refused(tmp_path):
    refusal = ran(tmp_path, "def main(): ...\n").refusal
    assert refusal["reason"] == "the script has no function `run`"
    assert refusal["expected"] == "def run(inputs, out, params)"


def test_a_run_with_other_arguments_is_refused_with_the_right_ones(tmp_path):
    refusal = ran(tmp_path, "def run(out): ...\n").refusal
    assert "takes 1 positional argument" in refusal["reason"]
    assert refusal["expected"] == "def run(inputs, out, params)"


def test_a_script_that_writes_nothing_is_refused(tmp_path):
    """STEP-10."""
    refusal = ran(tmp_path, "def run(inputs, out, params): ...\n").refusal
    assert refusal["reason"] == "the script wrote nothing"


@pytest.mark.parametrize("entry", ["", "other.py", "../code/rows.py"])
def test_an_entry_that_is_not_there_is_refused(tmp_path, entry):
    done = ran(tmp_path, "def run(inputs, out, params): ...\n", entry=entry)
    assert done.refusal["where"] == "params.entry"
    assert done.refusal["expected"] == "rows.py"
