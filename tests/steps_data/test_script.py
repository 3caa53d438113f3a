import cmath
import math
import random
import re
import statistics

import pytest

from kolm_build.steps import script
from kolm_build.steps._machine_math import EXACT_CMATH, EXACT_MATH, MACHINE, is_machines, uses
from tests.steps_data.calling import run_step
from tests.support.libm import printed_on_every_processor
from tests.support.models import ROOT


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


COVERED = """
import hashlib, math, random
draw = random.Random(7).random
found = []
for _ in range(2000):
    x, y = draw() * 10, draw() - 0.5
    found += [x + y, x - y, x * y, x / y, x // y, x % y, round(x, 3), float(repr(x))]
    found += [math.sqrt(x), math.fsum([x, y, -x]), math.fmod(x, y), math.remainder(x, y),
              math.degrees(x), math.radians(x), math.prod([x, y, x]), math.ldexp(x, -1060),
              math.nextafter(x, y), math.ulp(y), math.copysign(x, y), math.fabs(y),
              *math.frexp(x), *math.modf(x), math.floor(y), math.ceil(y), math.trunc(x)]
print(hashlib.sha256(" ".join(float(one).hex() for one in found).encode()).hexdigest())
"""


def test_the_arithmetic_that_a_script_may_use_is_the_same_on_every_processor():
    """STEP-28: `math.exp` in the program's place prints two hashes on an Intel processor."""
    assert len(printed_on_every_processor(COVERED)) == 1


def test_the_specification_names_the_functions_that_the_step_lets_pass():
    """STEP-28: a function that a new Python brings is the machine's until somebody looks."""
    rule = re.search(r"^- STEP-28\. .*$", (ROOT / "spec/steps.md").read_text("utf-8"), re.MULTILINE)
    listed = re.search(r"of `math` ([a-z0-9, ]+)\.", rule.group())
    assert set(listed.group(1).split(", ")) == EXACT_MATH
    assert EXACT_MATH - set(dir(math)) <= {"fma"}  # of Python 3.13
    assert set(dir(cmath)) >= EXACT_CMATH
    assert all(is_machines("math", name) for name in ("exp", "log", "cos", "pow", "hypot", "dist"))
    assert set(dir(random)) | {"binomialvariate"} >= MACHINE["random"]
    assert set(dir(statistics)) | {"kde", "kde_random"} >= MACHINE["statistics"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import math\nx = math.sqrt(2) + math.exp(1)", ["2 math.exp"]),
        ("import math as m\nm.log(2)\nm.log(3)", ["2 math.log"]),
        ("from math import cos as c, sqrt", ["1 math.cos"]),
        ("from math import *", ["1 math.*"]),
        ("import cmath\n\ncmath.phase(1j)", ["3 cmath.phase"]),
        ("import random\nrandom.random()\nrandom.gauss(0, 1)", ["3 random.gauss"]),
        ("from statistics import NormalDist, mean", ["1 statistics.NormalDist"]),
        ("y = x ** 0.5\nz = x ** 2", ["1 ** with 0.5"]),
        ("import mine\nmine.exp(1)\nmath = 1\nmath.exp", []),
    ],
)
def test_a_use_of_the_c_library_is_found_in_the_text(text, found):
    """STEP-29."""
    assert [f"{use.line} {use.name}" for use in uses(text)] == found


def test_the_log_says_where_a_scripts_bits_are_the_machines(tmp_path):
    """STEP-29: also in a module beside it; a file that is no Python is passed over."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "beside.py").write_text("from math import erf\n")
    (tmp_path / "code" / "notes.py").write_text("not Python (\n")
    text = (
        "import math\ndef run(inputs, out, params):\n    (out / 'a').write_text(str(math.exp(1)))\n"
    )
    assert [line.split(" is ")[0] for line in ran(tmp_path, text).logged().splitlines()] == [
        "beside.py:1: math.erf",
        "rows.py:3: math.exp",
    ]
