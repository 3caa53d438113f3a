"""The container: one layout, and every hostile file refused (spec/artifact.md)."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core import archive
from kolm_build.errors import InvalidRecordError
from tests.artifact.zips import Entry, write

A, W = Entry(b"a.json", b"{}"), Entry(b"w.bin", b"W" * 100)


def parse(data: bytes) -> archive.Layout:
    return archive.parse(lambda offset, length: data[offset : offset + length], len(data))


def refuse(data: bytes, reason: str = ".") -> None:
    with pytest.raises(InvalidRecordError, match=reason):
        parse(data)


def test_what_the_second_writer_writes_is_read():
    """ZIP-1, ZIP-2, ZIP-3, ZIP-4."""
    files = {b"manifest.json": b"{}", b"a": b"", b"b/c": b"x" * 200, b"attestations/z": b"s"}
    found = parse(write([Entry(name, data) for name, data in files.items()]))
    assert [piece.member.path for piece in found.placed] == [name.decode() for name in files]
    assert all(piece.offset % 64 == 0 for piece in found.placed[1:])
    assert found.placed[0].lead[:4] == b"PK\3\4"


PATHS = st.lists(
    st.text("abé_-", min_size=1, max_size=9), min_size=1, max_size=8, unique_by=str.casefold
)


@given(PATHS, st.randoms(use_true_random=False))
def test_both_writers_agree_whatever_the_order(paths, random):
    """ZIP-1 to ZIP-4."""
    files = {path: bytes(random.randrange(0, 150)) for path in paths}
    ordered = sorted(files, key=lambda path: path.encode())
    expected = write([Entry(path.encode(), files[path]) for path in ordered])
    shuffled = random.sample(ordered, len(ordered))
    plan = archive.layout(
        archive.Member(path=path, size=len(files[path]), crc32=zipfile.crc32(files[path]))
        for path in shuffled
    )
    made = b"".join(piece.lead + files[piece.member.path] for piece in plan.placed) + plan.tail
    assert made == expected
    assert parse(made) == plan


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "/etc/x", "a\\..\\b", "C:x", "e\u0301", "a\0json", "a\nb", "\u202eevil"),
        *("a//b", "d/", ".", "..", "a/./b", "", "a. ", "nul*", "\u200b", "x" * 600),
        "/".join("d" * 40),
    ],
)
def test_a_bad_path_is_refused(name):
    """ZIP-6; cases 1, 3, 4, 10 of the threat model."""
    refuse(write([Entry(name.encode(), b"x")]))


def test_a_path_that_is_not_utf8_is_refused():
    """ZIP-6."""
    refuse(write([Entry(b"\xff\xfe", b"x")]), "UTF-8")


@pytest.mark.parametrize(
    "names",
    [
        (b"a.json", b"a.json"),
        (b"A.json", b"a.json"),
        (b"STRASSE", "straße".encode()),
        (b"a", b"a/b"),
        (b"A/x", b"a/y"),
        (b"A", b"a/b"),
    ],
    ids=["duplicate", "case", "folding", "file and folder", "folders", "folded file and folder"],
)
def test_names_that_collide_are_refused(names):
    """ZIP-7; cases 2, 3, 10."""
    refuse(write([Entry(name, b"x") for name in names]))


def test_members_out_of_order_are_refused():
    """ZIP-1."""
    refuse(write([W, A]), "order")
    refuse(write([Entry(b"attestations/x", b""), Entry(b"b", b"")]), "order")
    refuse(write([A, Entry(b"manifest.json", b"")]), "order")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flags", 0),
        ("flags", 0x801),
        ("flags", 0x808),
        ("method", 8),
        ("time", 1),
        ("date", 0x22),
        ("need", 45),
        ("size", 3),
        ("stored", 1),
        ("crc", 5),
        ("size", 0xFFFFFFFF),
        ("names", 5),
        ("extra", 1),
    ],
)
def test_a_strange_header_field_is_refused_wherever_it_stands(field, value):
    """ZIP-2; cases 5, 7, 9."""
    refuse(write([Entry(b"a.json", b"{}", local={field: value}), W]))
    refuse(write([Entry(b"a.json", b"{}", central={field: value}), W]))
    if field not in ("size", "crc", "names"):
        both = {field: value}
        refuse(write([Entry(b"a.json", b"{}", local=both, central=both), W]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("made", 20),
        ("external", 0o120777 << 16),
        ("external", 0),
        ("internal", 1),
        ("disk", 1),
        ("comment", 1),
        ("offset", 64),
        ("sig", 0x02014B51),
    ],
)
def test_a_strange_directory_field_is_refused(field, value):
    """ZIP-2; case 5: symbolic links."""
    refuse(write([A, Entry(b"w.bin", b"W" * 100, central={field: value})]))


def test_another_name_in_the_local_header_is_refused():
    """ZIP-5; case 7."""
    refuse(write([Entry(b"a.json", b"{}", local_name=b"b.json"), W]), "another name")


def test_extra_fields_are_refused():
    """ZIP-2."""
    refuse(write([Entry(b"a.json", b"{}", extra=b"\x01\x00\x00\x00"), W]))


def test_an_archive_comment_is_refused():
    """ZIP-4; case 6: an end record hidden in the comment."""
    refuse(write([A, W], comment=b"PK\5\6" + bytes(18)))
    refuse(write([A, W], comment=b"hello"))


def test_bytes_before_after_and_between_are_refused():
    """ZIP-5; cases 6 and 8."""
    good = write([A, W])
    refuse(b"#!/bin/sh\n" + good)
    refuse(good + b"JUNK")
    refuse(good[:-1])
    refuse(write([Entry(b"a.json", b"{}", behind=b"hidden"), W]))
    refuse(write([A, Entry(b"w.bin", b"W", gap=b"")]))
    refuse(write([A, Entry(b"w.bin", b"W", gap=b"\0" * 26 + b"!")]), "hidden|wrong")
    refuse(write([A, Entry(b"w.bin", b"W", behind=bytes(64))]), "wrong|no member")
    refuse(write([Entry(b"a.json", b"{}", gap=bytes(64)), W]))


def test_hidden_bytes_in_the_padding_are_refused():
    """ZIP-3, ZIP-5; case 8."""
    good = write([A, W])
    at = 30 + 6 + 2
    assert good[at] == 0
    refuse(good[:at] + b"x" + good[at + 1 :], "hidden bytes")


def test_two_archives_in_one_file_are_refused():
    """ZIP-5; case 8."""
    refuse(write([Entry(b"evil", b"E")]) + write([A, W]))


def test_two_records_of_one_member_are_refused():
    """ZIP-5; case 8: overlapping records."""
    good = write([A])
    start = good.index(b"PK\1\2")
    record = good[start : good.index(b"PK\5\6")]
    refuse(good[:start] + record * 2 + good[-22:])


def test_bytes_hidden_before_the_directory_are_refused():
    """ZIP-4; case 8."""
    good = write([A, W])
    start = good.index(b"PK\1\2")
    end = bytearray(good[-22:])
    end[16:20] = (start + 6).to_bytes(4, "little")
    refuse(good[:start] + b"HIDDEN" + good[start:-22] + bytes(end))


@pytest.mark.parametrize(
    "end", [{"count": 1}, {"count": 3}, {"count": 65535}, {"size": 0xFFFFFFF0}]
)
def test_an_end_record_that_lies_is_refused_before_anything_is_read(end):
    """ZIP-8; case 9."""
    reads = []

    def read(offset: int, length: int) -> bytes:
        reads.append(length)
        return data[offset : offset + length]

    data = write([A, W], end=end)
    with pytest.raises(InvalidRecordError):
        archive.parse(read, len(data))
    assert max(reads) <= len(data)


def test_an_empty_or_short_file_is_refused():
    """ZIP-4."""
    for length in (0, 1, 21):
        refuse(b"P" * length, "short|wrong")


def test_too_many_members_are_refused():
    """ZIP-8."""
    members = [archive.Member(path=f"m{number}", size=0, crc32=0) for number in range(65_535)]
    with pytest.raises(InvalidRecordError, match="too many"):
        archive.layout(members)


def test_four_gibibytes_are_refused_with_advice():
    """ZIP-8."""
    half = archive.Member(path="a", size=1 << 31, crc32=0)
    other = archive.Member(path="b", size=(1 << 31) - 64, crc32=0)
    with pytest.raises(InvalidRecordError) as caught:
        archive.layout([half, other])
    assert caught.value.advice is not None


def test_every_changed_byte_outside_the_members_is_refused():
    """ZIP-5."""
    entries = [Entry(b"manifest.json", b"{}"), W, Entry("é/b".encode(), b"x" * 70)]
    good = write(entries)
    members = {
        at
        for piece in parse(good).placed
        for at in range(piece.offset, piece.offset + piece.member.size)
    }
    for at in set(range(len(good))) - members:
        for bit in range(8):
            refuse(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_with_a_typed_error(data):
    refuse(data)


@given(st.data())
def test_random_surgery_is_refused_with_a_typed_error(data):
    """ZIP-5: bytes deleted, doubled or inserted."""
    good = write([Entry(b"manifest.json", b"{}"), A, W])
    at = data.draw(st.integers(0, len(good)))
    count = data.draw(st.integers(1, 40))
    piece = data.draw(st.sampled_from([b"", good[at : at + count] * 2, bytes(count), b"PK\5\6"]))
    changed = good[:at] + piece + good[at + count :]
    if changed != good and len(changed) != len(good):
        refuse(changed)


TOOLS = {
    "unzip": ["unzip", "-t"],
    "zipinfo": ["zipinfo"],
    "7z": ["7z", "t"],
    "bsdtar": ["bsdtar", "-tf"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools_accept_the_layout(tool, tmp_path):
    """The padding is between records: see spec/adr/0010-zip-padding.md."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    path = tmp_path / "x.kolm"
    path.write_bytes(write([Entry(b"manifest.json", b"{}"), A, Entry(b"model/w", b"W" * 3000)]))
    done = subprocess.run([*TOOLS[tool], path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()


def test_the_standard_library_reads_the_members():
    data = write([Entry(b"manifest.json", b"{}"), Entry("é".encode(), b"x" * 99)])
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert found.testzip() is None
        assert found.read("é") == b"x" * 99


VECTORS = json.loads((Path(__file__).parents[2] / "spec/vectors/archive.json").read_text())


def test_the_vectors_are_what_the_second_writer_writes():
    """ZIP-1 to ZIP-4."""
    for vector in VECTORS["containers"]:
        files = {path.encode(): bytes.fromhex(data) for path, data in vector["files"].items()}
        ranks = {name: (name.startswith(b"attestations/"), name) for name in files}
        ordered = sorted(files, key=lambda name: (name != b"manifest.json", *ranks[name]))
        made = write([Entry(name, files[name]) for name in ordered])
        assert made.hex() == vector["container"]


def test_the_vectors_that_are_refused_are_refused():
    """ZIP-6, ZIP-7."""
    for path in VECTORS["refused_paths"]:
        with pytest.raises(InvalidRecordError):
            archive.parse_path(path)
    for paths in VECTORS["refused_together"]:
        with pytest.raises(InvalidRecordError):
            archive.layout(archive.Member(path=path, size=0, crc32=0) for path in paths)
