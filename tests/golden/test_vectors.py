"""spec/vectors/*.json hold for this package and for a second implementation alike.

The files themselves are compared with what the code makes by `tools/make_vectors.py --check`.
"""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from kolm_build.core import cbor, merkle
from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Blob, Digest, RecordKind
from kolm_build.core.environment import Environment
from kolm_build.core.kolmpack import Head, prefix
from kolm_build.core.kscore import KScore, Thresholds, gate
from kolm_build.core.machine import Machine
from kolm_build.core.realisation import Realisation
from kolm_build.core.split import is_holdout
from kolm_build.core.tree import Tree
from kolm_build.errors import InvalidRecordError
from tests.golden import independent

ROOT = Path(__file__).resolve().parent.parent.parent


def vectors(topic):
    return json.loads((ROOT / "spec" / "vectors" / f"{topic}.json").read_text())


def records():
    """Every hashed record of the vectors: its kind, our reader, and the vector."""
    readers = {
        ("tree", "trees"): Tree.from_value,
        ("derivation", "derivations"): Derivation.from_value,
        ("derivation", "resolved"): Derivation.from_value,
        ("realisation", "realisations"): Realisation.from_value,
        ("environment", "environments"): Environment.from_value,
        ("environment", "machines"): Machine.from_value,
    }
    for (topic, part), read in readers.items():
        kind = "machine" if part == "machines" else topic
        for index, vector in enumerate(vectors(topic)[part]):
            yield pytest.param(kind, read, vector, id=f"{part}-{index}")


def test_the_vector_files_are_what_the_code_makes():
    """DIGEST-8."""
    tool = [sys.executable, str(ROOT / "tools" / "make_vectors.py"), "--check"]
    result = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@pytest.mark.parametrize(("kind", "read", "vector"), list(records()))
def test_a_record_has_these_bytes_and_this_digest(kind, read, vector):
    """DIGEST-2, DIGEST-3: both implementations give the bytes and the digest of the vector."""
    value = independent.plain(vector["value"])
    assert independent.encode(value).hex() == vector["cbor"]
    assert independent.record_digest(value, kind) == vector["digest"]
    made = read(cbor.decode(bytes.fromhex(vector["cbor"])))
    assert cbor.encode(made.to_value()).hex() == vector["cbor"]
    assert str(made.digest) == vector["digest"]


@pytest.mark.parametrize("vector", vectors("derivation")["resolved"])
def test_a_resolved_derivation_is_named_without_its_name(vector):
    """DRV-8."""
    value = independent.plain(vector["value"])
    del value["name"]
    assert independent.record_digest(value, "resolved") == vector["resolved"]
    made = Derivation.decode(bytes.fromhex(vector["cbor"]))
    assert str(made.resolved_digest) == vector["resolved"]


@pytest.mark.parametrize("vector", vectors("digest")["blobs"])
def test_a_blob_has_both_digests(vector):
    """DIGEST-1."""
    data = bytes.fromhex(vector["hex"]) * vector["times"]
    blob = Blob.of(data)
    assert (str(blob.b3), str(blob.sha256)) == (vector["b3"], vector["sha256"])
    assert (independent.b3(data), independent.sha256(data)) == (vector["b3"], vector["sha256"])
    assert blob.size_bytes == vector["size"] == len(data)


@pytest.mark.parametrize("vector", vectors("digest")["records"], ids=lambda one: one["kind"])
def test_each_kind_of_record_has_a_context_of_its_own(vector):
    """DIGEST-2."""
    assert independent.CONTEXTS[vector["kind"]] == vector["context"]
    assert independent.record_digest({}, vector["kind"]) == vector["b3"]
    kind = RecordKind[vector["kind"].upper()]
    assert str(Digest.of_record(bytes.fromhex(vector["hex"]), kind)) == vector["b3"]


@pytest.mark.parametrize("vector", vectors("cbor")["accepted"], ids=lambda one: one["cbor"][:24])
def test_a_value_has_this_encoding(vector):
    """CBOR-1."""
    value, data = independent.plain(vector["value"]), bytes.fromhex(vector["cbor"])
    assert independent.encode(value) == cbor.encode(value) == data
    assert cbor.decode(data) == value


@pytest.mark.parametrize("vector", vectors("cbor")["refused"], ids=lambda one: one["why"])
def test_bytes_outside_the_profile_are_refused(vector):
    """CBOR-9."""
    with pytest.raises(InvalidRecordError):
        cbor.decode(bytes.fromhex(vector["cbor"]))


@pytest.mark.parametrize("vector", vectors("kolmpack")["heads"])
def test_a_pack_begins_like_this(vector):
    """PACK-1, PACK-2, PACK-4."""
    value, data = independent.plain(vector["value"]), bytes.fromhex(vector["cbor"])
    assert independent.encode(value) == data
    assert independent.record_digest(value, "kolmpack") == vector["id"]
    identity = bytes.fromhex(vector["id"].removeprefix("b3:"))
    expected = b"kolmpack 1\n" + len(data).to_bytes(8, "little") + identity
    assert bytes.fromhex(vector["prefix"]) == expected == prefix(data)
    assert Head.decode(data).encode() == data
    table = value["objects"]
    rows = [table[at : at + 41] for at in range(0, len(table), 41)]
    assert rows == sorted(rows)
    assert [(row[0], int.from_bytes(row[33:], "little")) for row in rows] == [
        (0, 300), (1, 120), (3, 200), (5, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("vector", vectors("merkle")["roots"], ids=lambda one: one["root"][:8])
def test_a_list_of_rows_has_this_root(vector):
    """SPLIT-7."""
    leaves = [bytes.fromhex(leaf) for leaf in vector["leaves"]]
    assert merkle.root(leaves) == independent.merkle_root(leaves) == bytes.fromhex(vector["root"])


def test_the_roots_are_those_of_certificate_transparency():
    """The known answers of the eight-leaf tree in the tests of Certificate Transparency."""
    roots = [vector["root"] for vector in vectors("merkle")["roots"]]
    assert roots[0] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert roots[1] == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert roots[8] == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@pytest.mark.parametrize("vector", vectors("split")["decisions"])
def test_a_key_is_on_this_side_of_the_split(vector):
    """SPLIT-1."""
    key, seed, modulus = vector["key"], vector["seed"], vector["modulus"]
    assert is_holdout(key, seed, modulus) is vector["holdout"]
    assert independent.is_holdout(key, seed, modulus) is vector["holdout"]


@pytest.mark.parametrize("vector", vectors("dataset")["lines"])
def test_a_row_becomes_this_line(vector):
    """DATA-10, DATA-11, DATA-20: `make vectors` holds our code to the same lines."""
    assert independent.dataset_line(vector) == (vector["line"], vector["compared"])


@pytest.mark.parametrize("vector", vectors("kscore")["scores"])
def test_evidence_has_this_score(vector):
    """KS-1 to KS-8."""
    assert independent.kscore(vector["evidence"]) == vector
    assert KScore.from_value(vector).to_value() == vector


@pytest.mark.parametrize("vector", vectors("kscore")["gates"])
def test_a_score_has_this_verdict(vector):
    """KS-10."""
    scored = vectors("kscore")["scores"][vector["score"]]
    verdict = vector["verdict"]
    thresholds = Thresholds.parse(
        k=verdict["k_min"], accuracy=verdict["accuracy_min"], coverage=verdict["coverage_min"]
    )
    assert gate(KScore.from_value(scored), thresholds).to_value() == verdict
    figures = {"k": scored["k"]} | scored["terms"]
    low = [
        term
        for term in ("k", "accuracy", "coverage")
        if Fraction(figures[term]) < Fraction(verdict[f"{term}_min"])
    ]
    assert [shortfall["term"] for shortfall in verdict["shortfalls"]] == low
    assert verdict["passed"] is (not low)
