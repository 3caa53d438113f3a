"""One suite for every kind of place: what is written is read, whole or from its middle on."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from urllib.request import Request, urlopen

import pytest

from kolm_build.core.digest import Digest
from kolm_build.errors import StoreFormatError, UsageError
from kolm_build.store.remote.layout import blob_path, tree_path
from kolm_build.store.remote.place import Bytes
from kolm_build.store.remote.pour import read
from kolm_build.store.remote.publish import check_format, read_claims
from kolm_build.store.remote.registry import MANIFEST
from tests.store.builders import derivation, make_folder, read_folder, realise
from tests.substituter.copying import (
    QUICK,
    fetch,
    model_folder,
    noise,
    publish,
    publish_claims,
    signing_key,
)
from tests.substituter.places import KINDS, opened

LIMITS = replace(QUICK, timeout_s=10.0)


@pytest.fixture(params=KINDS)
def both(request, place):
    """A place to write to, and the same one to read from."""
    with opened(request.param, place, lambda: request.getfixturevalue("bucket_port")) as pair:
        yield pair


def test_what_is_written_is_read_and_what_is_not_is_absent(both):
    """SUB-6."""
    writer, reader = both
    data = noise(3 << 20)
    writer.write("cas/ab/one", Bytes(data))
    writer.write("format", Bytes(b"x"))
    writer.write("cas/ab/empty", Bytes(b""))
    assert read(reader, "cas/ab/one", most=4 << 20, limits=LIMITS) == data
    assert read(reader, "cas/ab/empty", most=10, limits=LIMITS) == b""
    assert read(reader, "cas/ab/two", most=10, limits=LIMITS) is None
    assert reader.has("cas/ab/one")
    assert not reader.has("cas/ab/two")


def test_a_file_can_be_read_from_its_middle_on(both):
    """SUB-9."""
    writer, reader = both
    data = noise(1 << 20)
    writer.write("cas/ab/one", Bytes(data))
    stream = reader.open("cas/ab/one", start=1 << 19)
    buffer, found = memoryview(bytearray(1 << 16)), b""
    try:
        assert (stream.start, stream.size_bytes) == (1 << 19, 1 << 20)
        while count := stream.readinto(buffer):
            found += bytes(buffer[:count])
    finally:
        stream.close()
    assert found == data[1 << 19 :]


def test_a_file_can_be_replaced(both):
    writer, reader = both
    writer.write("real/ab/one", Bytes(b"first"))
    assert read(reader, "real/ab/one", most=10, limits=LIMITS) == b"first"
    writer.write("real/ab/one", Bytes(b"second"))
    assert read(reader, "real/ab/one", most=10, limits=LIMITS) == b"second"


def test_a_tree_goes_there_and_back_byte_for_byte(both, store, other, tmp_path):
    """SUB-2, SUB-3, SUB-7."""
    writer, reader = both
    folder = model_folder(tmp_path / "model")
    tree = store.ingest(folder)
    assert publish(store, writer, tree, limits=LIMITS) > 13 << 20
    assert publish(store, writer, tree, limits=LIMITS) == 0
    arrived, troubles = fetch(other, tree, reader, limits=LIMITS)
    assert (arrived.source, troubles) == (reader.url, [])
    other.materialise(tree, tmp_path / "back")
    assert read_folder(tmp_path / "back") == read_folder(folder)
    assert (tmp_path / "back/sub/deep/file").stat().st_mode & 0o111
    assert other.fsck(deep=True).is_clean


def test_what_is_here_is_not_fetched_again(both, store, other, tmp_path):
    """SUB-10."""
    writer, reader = both
    before = store.ingest(model_folder(tmp_path / "model"))
    (tmp_path / "model/new").write_bytes(noise(5000, 77))
    after = store.ingest(tmp_path / "model")
    publish(store, writer, before, after, limits=LIMITS)
    fetch(other, before, reader, limits=LIMITS)
    arrived, _ = fetch(other, after, reader, limits=LIMITS)
    assert 5000 <= arrived.bytes_fetched < 200_000
    assert fetch(other, after, reader, limits=LIMITS)[0].bytes_fetched == 0


def test_claims_are_added_and_none_is_lost(both, store, other, tmp_path):
    """SUB-4, SUB-5."""
    writer, reader = both
    made = derivation()
    for opened_store, text in ((store, b"one"), (other, b"two")):
        tree = opened_store.ingest(make_folder(tmp_path / text.decode(), {"f": text}))
        resolved = realise(opened_store, made, tree, sandbox="bubblewrap")
        for _ in range(2):
            publish_claims(opened_store, writer, resolved, key=signing_key(text))
    claims = read_claims(reader, resolved, LIMITS)
    assert len(claims) == 2
    assert len({claim.realisation.content for claim in claims}) == 2
    assert read_claims(reader, Digest.of_blob(b"another"), LIMITS) == ()


def test_a_place_without_the_format_file_is_no_substituter(both, store, tmp_path):
    """SUB-1."""
    writer, reader = both
    assert not check_format(reader, LIMITS)
    writer.write("format", Bytes(b"kolm-substituter 2\n"))
    with pytest.raises(StoreFormatError, match="another version"):
        check_format(reader, LIMITS)
    with pytest.raises(StoreFormatError, match="another version"):
        publish(store, writer, limits=LIMITS)


def test_files_have_the_names_that_the_specification_gives(both, store, tmp_path):
    """SUB-3."""
    writer, reader = both
    data = noise(70_000)
    tree = store.ingest(make_folder(tmp_path / "f", {"file": data}))
    publish(store, writer, tree, limits=LIMITS)
    b3 = Digest.of_blob(data)
    assert blob_path(b3) == f"cas/{b3.hex[:2]}/{b3.hex}"
    assert read(reader, blob_path(b3), most=1 << 20, limits=LIMITS) == data
    assert reader.has(tree_path(tree))


def test_a_web_server_is_to_be_read_from_only(place):
    with (
        opened("http", place, int) as (_, reader),
        pytest.raises(UsageError, match="read from only"),
    ):
        reader.write("format", Bytes(b""))


def test_in_a_registry_a_file_is_the_one_layer_of_a_manifest(place):
    """SUB-21."""
    with opened("oci", place, int) as (writer, _):
        writer.write("cas/ab/one", Bytes(b"one"))
        base = writer.url.replace("oci+http", "http").replace("/team", "/v2/team")
        request = Request(f"{base}/manifests/cas.ab.one", headers={"Accept": MANIFEST})
        with urlopen(request) as answer:
            manifest = json.loads(answer.read())
        (layer,) = manifest["layers"]
        with urlopen(f"{base}/blobs/{layer['digest']}") as answer:
            assert answer.read() == b"one"
    assert manifest["artifactType"] == "application/vnd.kolm.substituter.v1"
    assert manifest["config"]["size"] == 2
    assert layer["digest"] == f"sha256:{sha256(b'one').hexdigest()}"
