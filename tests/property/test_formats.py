"""Properties of the encodings: one value, one encoding, and nothing else read."""

import json

import cbor2
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core import cbor, strict_json
from kolm_build.core.kolmpack import (
    MAGIC,
    MAX_HEAD_BYTES,
    Entry,
    Head,
    PackKind,
    Target,
    pack_id,
    parse_prefix,
    prefix,
)
from kolm_build.core.toml import read_toml
from kolm_build.core.toml_writer import render
from kolm_build.core.tree import File, Folder, Link, Tree
from kolm_build.errors import InvalidRecordError, PackError
from tests.golden import independent
from tests.property import strategies


class TestOneValueOneEncoding:
    """CBOR-1: "A value MUST have exactly one encoding."."""

    @given(strategies.values)
    def test_a_value_is_read_back(self, value):
        assert cbor.decode(cbor.encode(value)) == value

    @given(strategies.values)
    def test_the_oracle_writes_the_same(self, value):
        assert cbor.encode(value) == cbor2.dumps(value, canonical=True)

    @given(st.binary(max_size=64))
    def test_decode_accepts_only_what_encode_writes(self, data):
        """CBOR-2, CBOR-4, CBOR-5, CBOR-6, CBOR-9."""
        try:
            value = cbor.decode(data)
        except InvalidRecordError:
            return
        assert cbor.encode(value) == data

    @given(strategies.values, st.data())
    def test_one_changed_byte_is_refused_or_another_value(self, value, data):
        encoded = bytearray(cbor.encode(value))
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] ^= data.draw(st.integers(1, 255))
        try:
            other = cbor.decode(bytes(encoded))
        except InvalidRecordError:
            return
        assert cbor.encode(other) != cbor.encode(value)

    @given(strategies.values)
    def test_any_prefix_is_refused(self, value):
        """CBOR-8."""
        encoded = cbor.encode(value)
        for end in range(len(encoded)):
            try:
                cbor.decode(encoded[:end])
            except InvalidRecordError:
                continue
            raise AssertionError(f"the first {end} bytes were accepted")

    @given(st.dictionaries(strategies.texts, strategies.integers, max_size=8), st.randoms())
    def test_the_order_of_a_map_does_not_matter(self, value, random):
        items = list(value.items())
        random.shuffle(items)
        assert cbor.encode(dict(items)) == cbor.encode(value)


class TestDepth:
    """CBOR-7."""

    @given(st.integers(60, 70))
    def test_both_sides_stop_at_64_levels(self, depth):
        value = None
        for _ in range(depth):
            value = [value]
        data = b"\x81" * depth + b"\xf6"
        outcomes = []
        for call, argument in ((cbor.encode, value), (cbor.decode, data)):
            try:
                call(argument)
            except InvalidRecordError:
                outcomes.append("refused")
            else:
                outcomes.append("accepted")
        assert set(outcomes) == {"accepted" if depth <= cbor.MAX_DEPTH else "refused"}


class TestJson:
    """JSON-1, JSON-2."""

    @given(strategies.json_values)
    def test_a_value_is_read_back_and_the_oracle_writes_the_same(self, value):
        data = strict_json.dumps(value)
        assert strict_json.loads(data) == value
        assert data == rfc8785.dumps(value)

    @given(strategies.json_values)
    def test_what_others_write_is_read(self, value):
        assert strict_json.loads(json.dumps(value, indent=2, ensure_ascii=True).encode()) == value

    @given(st.binary(max_size=40))
    def test_any_bytes_are_read_or_refused(self, data):
        try:
            value = strict_json.loads(data)
        except InvalidRecordError:
            return
        assert json.loads(data) == value


class TestToml:
    """LOCK-1."""

    tables = st.recursive(
        st.dictionaries(
            st.text(st.characters(codec="utf-8"), max_size=5),
            st.text(st.characters(codec="utf-8")) | strategies.json_integers | st.booleans(),
            max_size=4,
        ),
        lambda below: st.dictionaries(
            st.text(st.characters(codec="utf-8"), max_size=5),
            below | st.lists(below, min_size=1, max_size=3) | st.lists(st.text('ab\n"\\é')),
            max_size=3,
        ),
        max_leaves=8,
    )

    @given(tables)
    def test_a_table_is_read_back(self, table):
        assert read_toml(render(table)) == table


class TestTrees:
    """TREE-7: "two folders with equal names and bytes MUST have the same content."."""

    nodes = (
        st.builds(
            File,
            b3=strategies.digests,
            sha256=strategies.digests.map(lambda one: independent_sha(one.raw)),
            size_bytes=st.integers(0, 1 << 40),
            executable=st.booleans(),
        )
        | st.builds(Folder, tree=strategies.digests)
        | st.builds(Link, target=st.sampled_from(["a", "../b", "c/d"]))
    )

    @given(st.dictionaries(strategies.labels, nodes, max_size=6), st.randoms())
    def test_order_does_not_matter_and_the_second_implementation_agrees(self, entries, random):
        items = list(entries.items())
        random.shuffle(items)
        tree = Tree.of(items)
        assert tree == Tree.of(entries.items())
        assert Tree.decode(tree.encode()) == tree
        assert independent.record_digest(tree.to_value(), "tree") == str(tree.digest)

    @given(st.dictionaries(strategies.entry_names, nodes, max_size=30))
    def test_a_record_that_is_spelt_out_is_the_general_encoding(self, entries):
        """TREE-1."""
        try:
            tree = Tree.of(entries.items())
        except InvalidRecordError:
            return  # two names that differ in case alone
        assert tree.encode() == cbor.encode(tree.to_value())
        assert Tree.decode(tree.encode()) == tree

    @given(st.dictionaries(strategies.labels, nodes, min_size=1, max_size=4), st.data())
    def test_the_quick_reader_takes_what_the_general_one_takes(self, entries, data):
        """TREE-1: a byte changed, left out or doubled."""
        record = Tree.of(entries.items()).encode()
        at = data.draw(st.integers(0, len(record) - 1))
        middle = data.draw(st.sampled_from([b"", record[at : at + 1] * 2]) | st.binary(max_size=2))
        harmed = record[:at] + middle + record[at + 1 :]
        assert _read(Tree.decode, harmed) == _read(
            lambda raw: Tree.from_value(cbor.decode(raw)), harmed
        )


def _read(decode, data):
    try:
        return decode(data)
    except InvalidRecordError:
        return "refused"


def independent_sha(raw):
    from kolm_build.core.digest import Sha256

    return Sha256(raw)


class TestPackHeads:
    """PACK-4, PACK-5: a head has one encoding, and anything else is refused."""

    entries = st.builds(Entry, st.sampled_from(PackKind), strategies.digests, st.integers(0, 1000))
    heads = st.builds(
        lambda label, entries, digests, content: Head(
            name=label,
            targets=(Target(label=label, derivation=digests[0], output=label, content=content),),
            project=digests[0],
            environments=(),
            classes=("exact-1",),
            objects=tuple(sorted({entry.digest: entry for entry in entries}.values())),
            needs=(),
            left_out=tuple(sorted(set(digests))),
        ),
        strategies.labels,
        st.lists(entries, max_size=8),
        st.lists(strategies.digests, min_size=1, max_size=4),
        st.none() | strategies.digests,
    )

    @given(heads)
    def test_a_head_is_read_back(self, head):
        data = head.encode()
        assert Head.decode(data) == head
        assert parse_prefix(prefix(data)) == (len(data), pack_id(data))
        assert cbor.encode(head.to_value()) == cbor2.dumps(head.to_value(), canonical=True)

    @given(heads, st.data())
    def test_one_changed_byte_is_refused_or_another_head(self, head, data):
        encoded = bytearray(head.encode())
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] ^= data.draw(st.integers(1, 255))
        try:
            read = Head.decode(bytes(encoded))
        except InvalidRecordError:
            return
        assert read != head
        assert read.encode() == encoded

    @given(st.binary(max_size=120))
    def test_any_prefix_is_read_or_refused(self, data):
        for some in (data, MAGIC + data):
            try:
                length, _ = parse_prefix(some)
            except PackError:
                continue
            assert 0 < length <= MAX_HEAD_BYTES
