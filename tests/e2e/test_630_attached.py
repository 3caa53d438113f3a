"""A mixture of adapters through the command line: judged, packaged, verified, asked, rebuilt."""

import json
import shutil

import pytest

from tests.e2e.test_600_model import ROOT, Place

pytestmark = [pytest.mark.ml, pytest.mark.xdist_group("model")]

TRAIN = """[[train]]
algorithm = "sft"
adapter = "moe-lora"
experts = 3
top_k = 2
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Place:
    """The tiny example with a mixture in place of one adapter, locked, built and signed."""
    place = Place(tmp_path_factory.mktemp("home"))
    shutil.copytree(ROOT / "examples" / "tiny", place.project, ignore=shutil.ignore_patterns("__*"))
    place.replace("kolm.toml", '[[train]]\nalgorithm = "sft"\n', TRAIN)
    place.replace("kolm.toml", "epochs = 20", "epochs = 12")
    place.replace("kolm.toml", "lora_r = 16", "lora_r = 8")
    place.replace("kolm.toml", "size_budget_bytes = 400_000", "size_budget_bytes = 1_000_000")
    place.ok("key", "new", "--unencrypted")
    place.ok("key", "trust", str(place.home / ".config/kolm/key.pem.pub"), "--name", "me")
    place.ok("lock")
    place.ok("build", "--jobs", "2")
    return place


def test_it_passes_its_gate_and_is_signed(built):
    """ALG-20, ART-11: the gate judged what is shipped."""
    report = json.loads(built.ok("verify", str(built.artifact), "--json"))
    assert report["trusted"] is True
    assert report["adapter"]["kind"] == "KOLM_MOE_LORA"
    assert report["kscore"]["accuracy"] >= "0.75"
    assert any(text.startswith("FLOPs and bytes") for text in report["evidenced"])


def test_it_answers_with_the_mixture(built):
    """GEN-52: as it was judged; the base knows nothing."""
    wards = {"Ada reports a dry cough": "lung", "Ben reports low mood": "mind"}
    for prompt, ward in wards.items():
        assert json.loads(built.ok("run", "tiny.kolm", prompt, "--json"))["text"] == ward


def test_a_flipped_byte_of_the_adapter_is_refused(built, tmp_path):
    data = bytearray(built.artifact.read_bytes())
    at = data.index(b"KOLM_MOE_LORA", data.index(b'"experts":3') - 200)
    data[at] ^= 1
    (tmp_path / "bad.kolm").write_bytes(data)
    done = built.kolm("verify", str(tmp_path / "bad.kolm"))
    assert done.returncode == 64
    assert "Traceback" not in done.stderr


def test_no_other_format_holds_it(built):
    """ALG-22."""
    done = built.kolm("export", "tiny.kolm", "--format", "gguf-f16")
    assert done.returncode != 0
    assert "adapter" in done.stderr
    assert "Traceback" not in done.stderr


def test_from_nothing_it_is_the_same(built):
    assert built.ok("rebuild", "tiny.kolm") == f"identical: package  {built.id()}\n"
