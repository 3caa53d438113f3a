"""What docs/algorithms-checked.md says each algorithm is checked against: those tests are there.

An entry is a test's name, as a sentence, with a link to its file. A test that runs for several
algorithms has to name the one in whose row it stands among its parameters; one that runs once has
to speak of it, itself or in what it uses of its file.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from kolm_build.core.catalogue.table import ALGORITHMS
from tests.support.models import ROOT

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

PAGE = ROOT / "docs" / "algorithms-checked.md"
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+\.py)\)")
NONE = re.compile(r"none: \w.+")

PARTS = {
    "adalora": {"steps.adapters._budget": "steps/adapters/adalora.py"},
    "boft": {"steps._cayley": "steps/_adapter_kinds.py"},
    "dp-fed-avg": {
        "core.federated.fixed_point": "steps/federated/seal.py",
        "core.federated.gaussian": "steps/federated/seal.py",
        "core.federated.privacy": "steps/federated/aggregate.py",
    },
    "fed-dyn": {"steps.federated._local": "steps/federated/update.py"},
    "fed-prox": {"steps.federated._local": "steps/federated/update.py"},
    "flex-lora": {"steps.federated._factoring": "steps/federated/aggregate.py"},
    "flora": {"steps.federated._factoring": "steps/federated/aggregate.py"},
    "lora": {"steps._adapter": "steps/merge.py"},
    "oft": {"steps._cayley": "steps/adapters/oft.py"},
    "olora": {"steps._factorisation": "steps/adapters/olora.py"},
    "qat": {"steps.adapters._rounded": "steps/adapters/qat.py"},
    "qlora": {"steps._nf4": "steps/adapters/qlora.py"},
    "scaffold": {"steps.federated._local": "steps/federated/update.py"},
    "x-lora": {"runtime.gated": "steps/adapters/x_lora.py"},
}
"""Modules that algorithms are made of, tested by themselves, and where each is taken in."""


@cache
def page() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The rows of algorithms, by their ids, and those of bad input: their further cells."""
    rows: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in ("algorithm", "what is given", "---"):
            found = rows[0] if len(cells) == 5 else rows[1]
            assert cells[0] not in found, f"{cells[0]} has two rows"
            found[cells[0]] = cells[1:]
    return rows


def links(cell: str) -> list[tuple[str, Path]]:
    """The tests that a cell names: their functions and files."""
    parts = cell.split("; ")
    found = [LINK.fullmatch(part) for part in parts]
    assert all(found), cell
    return [("test_" + one[1].replace(" ", "_"), Path(one[2])) for one in found if one is not None]


@cache
def tops(file: Path) -> dict[str, ast.AST]:
    """What a file has at its top, by name: functions, classes, constants, imports."""
    found: dict[str, ast.AST] = {}
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        found[name.id] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(one.asname or one.name): node for one in node.names}
    return found


def used(file: Path, name: str) -> str:
    """The code of `name` and of all that it uses of its file, fixtures too; no comments."""
    here, todo, seen = tops(file), [name], {}
    while todo:
        one = todo.pop()
        if one in seen or one not in here:
            continue
        seen[one] = ast.unparse(here[one])
        for node in ast.walk(here[one]):
            if isinstance(node, ast.Name):
                todo.append(node.id)
            elif isinstance(node, ast.arg):
                todo.append(node.arg)
    return "\n".join(seen.values())


def flat(value: object) -> Iterator[str]:
    """The texts in parameters of a test, ids of catalogue rows among them."""
    if isinstance(value, str):
        yield value
    elif hasattr(value, "id") and isinstance(value.id, str):
        yield value.id
        yield from flat(getattr(value, "values", ()))
    elif isinstance(value, list | tuple | set | frozenset | dict):
        for one in value:
            yield from flat(one)
    elif hasattr(value, "values") and not callable(value.values):
        yield from flat(value.values)


def runs_for(name: str, file: Path) -> set[str]:
    """The algorithms among the parameters of a test; empty where it has none."""
    module = importlib.import_module(".".join(file.with_suffix("").parts))
    marks = getattr(getattr(module, name), "pytestmark", [])
    found = {
        text for mark in marks if mark.name == "parametrize" for text in flat(list(mark.args[1]))
    }
    return found & set(ALGORITHMS)


def speaks_of(algorithm: str, name: str, file: Path) -> bool:
    """Whether the code of a test names the algorithm, its module, its class or a part of it."""
    words = algorithm.split("-")
    spelled = {algorithm, "_".join(words), "".join(word.title() for word in words)}
    pattern = "|".join(re.escape(one) for one in spelled)
    code = used(file, name) if name in tops(file) else ""
    if any(takes(code, part) for part in PARTS.get(algorithm, ())):
        return True
    return re.search(rf"(?<![\w-])({pattern})(?![\w-])", code, re.IGNORECASE) is not None


def takes(code: str, part: str) -> bool:
    """Whether `code` imports a module, or something of it."""
    package, _, name = f"kolm_build.{part}".rpartition(".")
    return f"from {package}.{name} import" in code or f"from {package} import {name}" in code


@pytest.mark.parametrize("algorithm", PARTS)
def test_a_part_of_an_algorithm_is_taken_in_by_it(algorithm):
    """So that a test of the part is one of the algorithm."""
    for part, home in PARTS[algorithm].items():
        assert takes("\n".join(imports_of(home)), part), part


def imports_of(home):
    tree = ast.parse((ROOT / "kolm_build" / home).read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return map(ast.unparse, nodes)


def test_every_algorithm_has_a_row():
    """ALG-1: and nothing else has one."""
    assert list(page()[0]) == list(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_row_names_tests_of_its_algorithm(algorithm):
    """ALG-1: of loss, gradient and limits; a gradient may be none, with a reason."""
    oracle, loss, gradient, limits = page()[0][algorithm]
    assert oracle == ALGORITHMS[algorithm].oracle
    cells = [loss, limits, *([] if NONE.fullmatch(gradient) else [gradient])]
    for name, file in [one for cell in cells for one in links(cell)]:
        assert name in tops(file), f"{file} has no {name}"
        among = runs_for(name, file)
        if among:
            assert algorithm in among, f"{name} does not run for {algorithm}"
        else:
            assert speaks_of(algorithm, name, file), f"{name} does not speak of {algorithm}"


def test_every_kind_of_bad_input_has_a_test():
    """The eleven that people meet; each test that is named is there."""
    assert len(page()[1]) == 11
    for (cell,) in page()[1].values():
        for name, file in links(cell):
            assert name in tops(file), f"{file} has no {name}"


def test_a_test_of_something_else_is_noticed():
    """The checks above can fail: another file, another algorithm, a parameter that is not there."""
    preference = Path("tests/steps_ml/test_preference.py")
    assert "dpo" in runs_for("test_a_loss_is_that_of_its_paper", preference)
    assert "wpo" not in runs_for("test_a_loss_is_that_of_its_paper", preference)
    assert "test_a_loss_is_that_of_nothing" not in tops(preference)
    orpo = "test_orpo_without_its_odds_is_the_likelihood_of_the_chosen_answers"
    assert speaks_of("orpo", orpo, preference)
    assert not speaks_of("kto", orpo, preference)
