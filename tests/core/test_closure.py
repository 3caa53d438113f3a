"""Closures, cycles and garbage collection."""

import sys

import pytest

from kolm_build.core.closure import closure, find_cycle
from kolm_build.core.gc import plan_gc
from tests.core.samples import digest

GRAPH = {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": [], "e": ["a"]}


def test_a_closure_has_everything_once_and_needs_first():
    assert closure(["a"], GRAPH.__getitem__) == ("d", "b", "c", "a")
    assert closure(["d", "a"], GRAPH.__getitem__) == ("d", "b", "c", "a")
    assert closure([], GRAPH.__getitem__) == ()


def test_a_long_chain_has_a_closure():
    """PLAN-8."""
    count = 3 * sys.getrecursionlimit()
    found = closure([count], lambda node: [node - 1] if node else [])
    assert found == tuple(range(count + 1))
    assert find_cycle([count], lambda node: [node - 1] if node else []) == ()


def test_a_cycle_is_found_and_named():
    graph = {"a": ["b"], "b": ["c", "d"], "c": [], "d": ["b"]}
    assert find_cycle(graph, graph.__getitem__) == ("b", "d")
    assert find_cycle(["a"], {"a": ["a"]}.__getitem__) == ("a",)
    assert find_cycle(GRAPH, GRAPH.__getitem__) == ()
    with pytest.raises(ValueError, match="a cycle"):
        closure(["a"], graph.__getitem__)


def test_collection_keeps_what_a_root_reaches():
    """PLAN-9."""
    graph = {digest(name): [digest(one) for one in needs] for name, needs in GRAPH.items()}
    sizes = {digest(name): index + 1 for index, name in enumerate("abcdef")}
    found = plan_gc(
        [digest("b"), digest("not here")],
        references=lambda one: graph.get(one, []),
        sizes=sizes,
    )
    assert found.live & sizes.keys() == {digest("b"), digest("d")}
    assert set(found.dead) == {digest(name) for name in "acef"}
    assert list(found.dead) == sorted(found.dead)
    assert found.freed_bytes == 1 + 3 + 5 + 6
