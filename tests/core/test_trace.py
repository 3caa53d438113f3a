"""A trace says what every step left, and two traces part in one step."""

from __future__ import annotations

import json
from hashlib import sha256
from math import ceil, log2
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core import merkle, strict_json
from kolm_build.core.trace import HEAD_FILE, STEPS_FILE, Parting, Trace, parting
from kolm_build.errors import InvalidRecordError

VECTORS = json.loads(
    (Path(__file__).resolve().parents[2] / "spec" / "vectors" / "trace.json").read_text()
)


def read(files) -> Trace:
    return Trace.of_files(files[HEAD_FILE].encode(), files[STEPS_FILE].encode())


def trace(losses) -> Trace:
    lines = (strict_json.dumps({"loss": loss, "step": n}) for n, loss in enumerate(losses, 1))
    return Trace(start={"rows": "b3:00"}, lines=tuple(lines))


def tree_hash(leaves) -> bytes:
    """RFC 6962, section 2.1, word for word: an implementation of its own."""
    if len(leaves) < 2:
        return sha256(b"\x00" + leaves[0]).digest() if leaves else sha256().digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + tree_hash(leaves[:split]) + tree_hash(leaves[split:])).digest()


@pytest.mark.parametrize("pair", VECTORS["pairs"], ids=lambda pair: str(pair["parting"]))
def test_the_vectors_part_where_they_say(pair):
    """TRACE-6."""
    found = parting(read(VECTORS["trace"]), read(pair["other"]))
    assert (None if found is None else found.to_value()) == pair["parting"]


def test_a_trace_is_its_two_files():
    """TRACE-1."""
    made = trace(["a", "b"])
    files = made.files()
    assert sorted(files) == [HEAD_FILE, STEPS_FILE]
    assert sorted(json.loads(files[HEAD_FILE])) == ["format", "root", "start", "steps"]
    assert Trace.of_files(files[HEAD_FILE], files[STEPS_FILE]) == made


@given(st.lists(st.text("ab", max_size=2), max_size=40))
def test_the_root_is_the_tree_hash_of_rfc_6962_over_start_and_lines(losses):
    """TRACE-2."""
    made = trace(losses)
    start = json.loads(made.files()[HEAD_FILE])["start"]
    lines = made.files()[STEPS_FILE].splitlines()
    leaves = [strict_json.dumps(start), *lines]
    assert made.root.raw == tree_hash(leaves)
    tree = merkle.Tree(leaves)
    assert tree.node(0, len(leaves)) == made.root.raw
    assert tree.node(1, len(leaves)) == tree_hash(leaves[1:])


@given(
    st.integers(min_value=1, max_value=300),
    st.sets(st.integers(min_value=0, max_value=299), max_size=3),
)
def test_the_first_difference_takes_few_questions(count, changed):
    """TRACE-6: at most ceil(log2(leaves)) + 1 hashes of each side."""
    leaves = [str(number).encode() for number in range(count)]
    other = [leaf + b"!" * (number in changed) for number, leaf in enumerate(leaves)]
    trees = merkle.Tree(leaves), merkle.Tree(other)
    asked = []

    def node(start, end):
        asked.append((start, end))
        return trees[0].node(start, end)

    expected = min((number for number in changed if number < count), default=None)
    assert merkle.first_difference(node, trees[1].node, count) == expected
    assert len(asked) <= ceil(log2(count)) + 1


def test_a_trace_that_goes_on_parts_where_the_other_ends():
    assert parting(trace("ab"), trace("abc")) == Parting(step=3, parts=())


def test_a_difference_at_the_start_names_the_parameter():
    one, other = (
        Trace(start={"params": {"epochs": epochs, "seed": 1}}, lines=()) for epochs in (1, 2)
    )
    assert parting(one, other) == Parting(step=0, parts=("params.epochs",))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda head, steps: (head.replace(b"sha256:", b"sha256:0")[:-3] + b"1}", steps), None),
        (lambda head, steps: (head, steps.replace(b'"a"', b'"z"')), "root"),
        (lambda head, steps: (head, steps + steps), None),
        (lambda head, steps: (head, steps.replace(b'"step":2', b'"step":3')), "line 2"),
        (lambda head, steps: (head, steps.replace(b'"step":2', b'"step": 2')), "line 2"),
        (lambda head, steps: (head.replace(b"trace/1", b"trace/2"), steps), "format"),
        (lambda head, steps: (head[:-1] + b',"x":1}', steps), "x"),
    ],
)
def test_a_damaged_trace_is_refused(change, where):
    """TRACE-2, TRACE-7."""
    files = trace("ab").files()
    with pytest.raises(InvalidRecordError) as caught:
        Trace.of_files(*change(files[HEAD_FILE], files[STEPS_FILE]))
    assert caught.value.file in {HEAD_FILE, STEPS_FILE}
    assert where is None or caught.value.where == where
