"""Packaging: the same bytes from the same inputs; only what passed (spec/artifact.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from blake3 import blake3

from kolm_build.core import strict_json
from kolm_build.core.manifest import Manifest, artifact_id
from kolm_build.errors import GateFailedError, InvalidRecordError, UnsupportedVersionError
from tests.artifact import making
from tests.attest.helping import members

ROOT = Path(__file__).parents[2]
MAKE = "import sys; from pathlib import Path; from tests.artifact import making; "
MAKE += "making.make(Path(sys.argv[1]))"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return making.make(tmp_path_factory.mktemp("made"))


def test_the_same_inputs_give_the_same_bytes_anywhere(made, tmp_path):
    """ART-6: another process, folder, hash seed, clock zone, locale and umask."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LANG": "C"}
    subprocess.run(
        [sys.executable, "-c", MAKE, str(folder)],
        cwd=ROOT,
        env=environment,
        umask=0o077,
        check=True,
    )
    assert (folder / "package" / "tiny.kolm").read_bytes() == made.read_bytes()


def test_the_manifest_lists_every_member_with_right_digests(made):
    """ART-1, ART-2, ART-3."""
    files = members(made)
    manifest = json.loads(files.pop("manifest.json"))
    assert [entry["path"] for entry in manifest["members"]] == list(files)
    for entry in manifest["members"]:
        data = files[entry["path"]]
        assert entry["sha256"] == f"sha256:{sha256(data).hexdigest()}"
        assert entry["b3"] == f"b3:{blake3(data).hexdigest()}"
        assert entry["size"] == len(data)
    raw = members(made)["manifest.json"]
    assert artifact_id(raw) == f"sha256:{sha256(raw).hexdigest()}"
    assert Manifest.decode(raw).encode() == raw


def test_the_weights_id_is_that_of_a_second_implementation(made):
    """ART-4, SAFE-15."""
    import cbor2
    from safetensors.torch import load

    data = members(made)["model/model.safetensors"]
    length = int.from_bytes(data[:8], "little")
    rows = []
    for name, entry in sorted(json.loads(data[8 : 8 + length]).items()):
        if name != "__metadata__":
            begin, end = (8 + length + at for at in entry["data_offsets"])
            row = [name, entry["dtype"], entry["shape"], blake3(data[begin:end]).digest()]
            rows.append(row)
    record = cbor2.dumps({"v": 1, "tensors": rows}, canonical=True)
    context = "kolm_build 2026 weights v1"
    expected = blake3(record, derive_key_context=context).hexdigest()
    manifest = json.loads(members(made)["manifest.json"])
    assert manifest["weights_id"] == f"b3:{expected}"
    assert set(load(data)) == {name for name, _, _ in making.TENSORS}


def test_the_base_may_be_left_out(tmp_path):
    files = members(making.make(tmp_path, making.smallest))
    assert not [name for name in files if "base" in name]


def test_nothing_is_packaged_that_did_not_pass(tmp_path):
    """ART-7: also where a gate.json says so."""
    making.make(tmp_path / "x")
    gate = tmp_path / "x" / "gate" / "gate.json"
    gate.write_bytes(strict_json.dumps(json.loads(gate.read_bytes()) | {"passed": False}))
    with pytest.raises(GateFailedError):
        making.package_again(tmp_path / "x", tmp_path / "again")
    assert list((tmp_path / "again").iterdir()) == []


def link(folder: Path) -> None:
    (folder / "model" / "link.json").symlink_to("config.json")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "story" / "pipe")


def folder_link(folder: Path) -> None:
    (folder / "story" / "sources").symlink_to(folder / "model")


@pytest.mark.parametrize("change", [link, pipe, folder_link])
def test_what_is_no_file_is_refused(tmp_path, change):
    """ART-8."""
    making.make(tmp_path / "x")
    change(tmp_path / "x")
    with pytest.raises(InvalidRecordError, match="files, no links"):
        making.package_again(tmp_path / "x", tmp_path / "again")


@pytest.mark.parametrize(
    ("role", "name"),
    [("holdout", "holdout.jsonl"), ("evaluation", "summary.json"), ("story", "kolm.lock")],
)
def test_a_missing_file_is_named(tmp_path, role, name):
    making.make(tmp_path / "x")
    (tmp_path / "x" / role / name).unlink()
    with pytest.raises(InvalidRecordError) as caught:
        making.package_again(tmp_path / "x", tmp_path / "again")
    assert name in str(caught.value)


def test_weights_that_are_not_strict_are_named(tmp_path):
    making.make(tmp_path / "x")
    path = tmp_path / "x" / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidRecordError) as caught:
        making.package_again(tmp_path / "x", tmp_path / "again")
    assert caught.value.file == "model/model.safetensors"


def test_the_bill_of_materials_names_inputs_tools_and_files(made):
    """ART-9."""
    found = json.loads(members(made)["sbom/cyclonedx.json"])
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert "serialNumber" not in found
    assert "timestamp" not in found["metadata"]
    refs = {each["bom-ref"]: each for each in found["components"]}
    assert refs["input/base"]["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert refs["distribution/torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert {hash_["alg"] for hash_ in refs["model/model.safetensors"]["hashes"]} == {
        "BLAKE3",
        "SHA-256",
    }
    assert found["dependencies"][0]["dependsOn"] == sorted(refs)


def test_a_manifest_of_another_format_is_told_apart(made):
    """ART-5."""
    raw = members(made)["manifest.json"]
    with pytest.raises(UnsupportedVersionError):
        Manifest.decode(raw.replace(b"kolm-artifact/1", b"kolm-artifact/9"))
    with pytest.raises(InvalidRecordError):
        Manifest.decode(raw + b"\n")
