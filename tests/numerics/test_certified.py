"""The table of certified operations, held against PyTorch's dispatcher."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kolm_build.numerics import certified, portable

ROOT = Path(__file__).parents[2]
DISPATCHER = Path(__file__).parent / "dispatcher.txt"
MEMORY = ["aten::empty.memory_format", "aten::empty_like", "aten::empty_strided"]


@pytest.fixture(scope="module", autouse=True)
def library():
    portable.load()


@pytest.fixture
def kernels(library):
    portable.activate()
    yield portable.operators()
    portable.deactivate()


def present() -> dict[str, str]:
    """The schema of every operation that a tensor on the CPU may reach."""
    return {schema.partition("(")[0]: schema for schema in torch.ops.kolm_guard.operations()}


def test_every_operation_of_the_table_is_one_of_pytorch_and_reaches_a_cpu_kernel(kernels):
    """NUM-90."""
    import transformers.integrations.moe  # noqa: F401 -- it registers operations

    assert set(certified.table()) - set(present()) == set()


def test_the_portable_kernels_are_those_that_the_table_calls_replaced(kernels):
    """NUM-90."""
    assert {f"aten::{name}" for name in kernels} == set(certified.names("replaced"))


@pytest.mark.parametrize("name", certified.names("replaced"))
def test_a_replaced_operation_runs_the_kernel_of_the_library(kernels, name):
    """NUM-90: what the dispatcher says, not what the library says of itself."""
    lines = torch._C._dispatch_dump(name).splitlines()
    active = [line for line in lines if line.startswith("CPU:")]
    assert len(active) == 1
    assert "torch_library.cpp" in active[0]


def test_an_operation_stands_in_the_table_once_and_its_condition_is_known():
    """NUM-90, NUM-92."""
    table = certified.table()
    assert list(table) == sorted(table)
    assert set(certified.conditional().values()) <= set(certified.CONDITIONS)


def test_pytorch_has_the_operations_that_the_table_was_made_for():
    """NUM-98. `python -m tests.numerics.test_certified` writes the file anew, after an audit."""
    known = dict(line.split() for line in DISPATCHER.read_text().splitlines())
    now = fingerprint()
    added = sorted(set(now) - set(known))
    removed = sorted(set(known) - set(now))
    changed = sorted(name for name in set(now) & set(known) if now[name] != known[name])
    assert (added, removed, changed) == ([], [], []), (
        "torch has other operations: audit them (tools/audit_ops.py), then write the list anew"
    )


def fingerprint() -> dict[str, str]:
    return {
        name: hashlib.sha256(schema.encode()).hexdigest()[:8]
        for name, schema in present().items()
        if name.startswith("aten::")
    }


def sample(name: str) -> tuple[object, list[object], dict[str, object]]:
    """Arguments for the operation `name`, from its schema."""
    full, _, overload = name.removeprefix("aten::").partition(".")
    operator = getattr(getattr(torch.ops.aten, full), overload or "default")
    positional, named = [], {}
    for argument in operator._schema.arguments:
        if argument.has_default_value() and not argument.is_out:
            continue
        value = value_of(argument.name, str(argument.type), name)
        if argument.kwarg_only:
            named[argument.name] = value
        else:
            positional.append(value)
    return operator, positional, named


def value_of(argument: str, kind: str, name: str) -> object:
    number = torch.int64 if "bitwise" in name or "floor_divide" in name else torch.float32
    if argument == "other" and name.startswith("aten::_foreach") and name.endswith(".Tensor"):
        return torch.tensor(2.0)
    if name == "aten::_grouped_mm":
        return torch.ones(3, 8) if argument == "self" else torch.ones(2, 8, 8)
    special = {
        "mask": torch.ones(3, 4, dtype=torch.bool),
        "index": torch.tensor([0, 1]),
        "indices": [torch.tensor([0, 1])],
        "values": torch.ones(2, 4),
        "source": torch.ones(2, 4) if "index" in name else torch.ones(3, 4),
        "rounding_mode": "floor",
        "offs": torch.tensor([1, 3], dtype=torch.int32),
        "sizes": [3, 4],
        "input_sizes": [5, 4],
        "start": 0,
        "end": 2.5 if "backward" not in name else 2,
        "step": 1,
        "repeats": [2, 2],
        "p": 0.5,
        "generator": None,
        "grad_output": torch.ones(4) if "select" in name else torch.ones(2, 4),
        "src": torch.ones(4) if "select_scatter" in name else torch.ones(3, 4),
    }
    if argument in special:
        return special[argument]
    if kind == "Tensor":
        return torch.ones(3, 4, dtype=number)
    if kind.startswith("List[Tensor]"):
        return [torch.ones(3, 4), torch.ones(2)]
    if kind.startswith("List[int]"):
        return [3, 4]
    if kind.startswith("List[num"):
        return [2, 2]
    return 0 if argument in ("dim", "low") else 2


COMPOSED_BY_ATEN = [name for name in certified.names("composed") if name.startswith("aten::")]


@pytest.mark.parametrize("name", COMPOSED_BY_ATEN)
def test_a_composed_operation_reaches_another_one_through_the_dispatcher(name):
    """NUM-90: alone in the table it is refused, for what it calls is not there."""
    operator, positional, named = sample(name)
    if name == "aten::_grouped_mm":
        named["offs"] = torch.tensor([1, 3], dtype=torch.int32)
    torch.ops.kolm_guard.install([name, *MEMORY], [])
    try:
        with pytest.raises(RuntimeError, match="kolm refuses"):
            operator(*positional, **named)
    finally:
        torch.ops.kolm_guard.release()


def test_exact_operations_give_the_same_bits_in_every_setting():
    """NUM-91, the quick audit."""
    command = [sys.executable, str(ROOT / "tools" / "audit_ops.py"), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["cases"] > 2000
    assert {part: found[part] for part in ("blind", "differing", "numpy", "untried")} == {
        "blind": [],
        "differing": {},
        "numpy": [],
        "untried": [],
    }


if __name__ == "__main__":
    portable.load()
    DISPATCHER.write_text(
        "".join(f"{name} {text}\n" for name, text in sorted(fingerprint().items()))
    )
