"""spec/split.md: sides of the split, and roots of lists of rows."""

import subprocess
import sys
from pathlib import Path

import pytest

from kolm_build.core import merkle
from kolm_build.core.split import is_holdout
from kolm_build.errors import InvalidRecordError


@pytest.mark.parametrize("modulus", [-5, 0, 1, 1001])
def test_the_modulus_has_bounds(modulus):
    """SPLIT-5."""
    with pytest.raises(InvalidRecordError) as caught:
        is_holdout("a", "1", modulus)
    assert caught.value.where == "modulus"


def test_about_one_key_in_modulus_is_held_out():
    for modulus in (2, 5, 10):
        held = sum(is_holdout(f"key {index}", "1", modulus) for index in range(5000))
        assert abs(held - 5000 / modulus) < 5 * (5000 / modulus) ** 0.5


def test_another_seed_is_another_split():
    sides = [[is_holdout(f"key {index}", seed) for index in range(200)] for seed in ("1", "2")]
    assert sides[0] != sides[1]


def test_key_and_seed_cannot_run_into_each_other():
    """SPLIT-1: the key's encoding says where it ends."""
    assert [is_holdout("ab", f"c{n}", 1000) for n in range(3000)] != [
        is_holdout("a", f"bc{n}", 1000) for n in range(3000)
    ]


def test_a_key_that_is_not_nfc_is_refused():
    """SPLIT-2."""
    with pytest.raises(InvalidRecordError, match="NFC"):
        is_holdout("e\u0301", "1")


def test_a_leaf_is_not_a_node():
    """SPLIT-6: without the prefixes these two lists would have one root."""
    left, right = merkle.root([b"a"]), merkle.root([b"b"])
    assert merkle.root([b"a", b"b"]) != merkle.root([left + right])


ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = (
    *("cbor", "decimals", "fields", "kscore", "merkle", "name", "numerics", "request"),
    *("split", "statement", "strict_json", "archive", "safetensors", "evaluation"),
)


def test_what_light_steps_and_the_verifier_read_with_needs_the_standard_library_alone():
    names = ", ".join(f"kolm_build.core.{module}" for module in MODULES)
    code = (
        f"import sys; before = set(sys.modules); import {names}\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names) - {'kolm_build'}))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_core_that_plans_imports_no_framework():
    code = (
        "import sys, kolm_build.core.plan, kolm_build.core.lock_diff\n"
        "import kolm_build.core.instantiation.instantiate\n"
        "heavy = {'torch', 'transformers', 'numpy', 'requests', 'pydantic', 'tomllib'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == ""
