"""Portable steps: what the engine tells them of this machine, and what stays out of the hash."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kolm_build.core.numerics import Numerics
from kolm_build.engine.builder import SandboxBuilder, UnsafeOpenBuilder
from kolm_build.engine.kernels import Kernels
from kolm_build.engine.sandbox import Surroundings
from kolm_build.errors import KernelsMissingError
from tests.engine.steps import SHAPES, code, derivation

BODY = """
said = request.get("circumstances", {})
kernels = open(said["kernels"]).read() if said else os.path.getsize("/kolm/kernels.so")
put("text", json.dumps([said, kernels, os.environ["OMP_NUM_THREADS"]]))
"""


@pytest.fixture
def kernels(tmp_path):
    """What stands for a compiled library: the engine only shows it."""
    path = tmp_path / "libkolm_portable.so"
    path.write_text("compiled")
    return Kernels(library=path, threads=2)


def built(store, tmp_path, kernels, *, kind=SandboxBuilder, cls="portable-1"):
    """What the step saw, its digest and the circumstances of its realisation."""
    node = replace(derivation(code(store, tmp_path, BODY)), numerics=Numerics(cls=cls))
    builder = kind(
        store=store, steps=SHAPES, environments=lambda _: Surroundings(), kernels=kernels
    )
    made = builder.build(node, node, lambda _: None)
    text = dict(store.tree(made.contents["out"]).entries)["text"]
    return json.loads(store.read_blob(text.b3)), node.digest, made.circumstances


def test_a_portable_step_is_told_of_its_kernels_and_threads(store, tmp_path, kernels):
    """PROTO-14, BOX-2, NUM-105."""
    seen, _, circumstances = built(store, tmp_path, kernels)
    assert seen == [{"kernels": "/kolm/kernels.so", "threads": 2}, "compiled", "2"]
    assert circumstances["threads"] == 2


def test_without_a_sandbox_it_sees_them_where_they_are(store, tmp_path, kernels):
    seen, _, _ = built(store, tmp_path, kernels, kind=UnsafeOpenBuilder)
    assert seen == [{"kernels": str(kernels.library), "threads": 2}, "compiled", "2"]


def test_a_step_of_another_class_sees_no_kernels(store, tmp_path, kernels):
    """PROTO-14."""
    seen, _, _ = built(store, tmp_path, kernels, cls="exact-1")
    assert seen == [{}, 0, "1"]


def test_neither_threads_nor_the_librarys_bytes_are_in_a_derivation(store, tmp_path, kernels):
    """NUM-103, NUM-105."""
    _, before, _ = built(store, tmp_path, kernels)
    kernels.library.write_text("compiled by another compiler")
    seen, after, _ = built(store, tmp_path, replace(kernels, threads=1))
    assert seen[1:] == ["compiled by another compiler", "1"]
    assert after == before


@pytest.mark.parametrize("missing", [True, False])
def test_without_compiled_kernels_no_portable_step_runs(store, tmp_path, missing):
    kernels = Kernels() if missing else Kernels(library=tmp_path / "nowhere.so")
    with pytest.raises(KernelsMissingError, match="not compiled") as caught:
        built(store, tmp_path, kernels)
    assert "make kernels" in (caught.value.advice or "")
