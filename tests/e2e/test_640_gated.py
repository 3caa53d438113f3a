"""X-LoRA through the command line: two adapters, a mixture of them, judged and shipped."""

import json
import shutil

import pytest

from tests.e2e.test_600_model import ROOT, Place

pytestmark = [pytest.mark.ml, pytest.mark.xdist_group("model")]

STAGE = """[[train]]
algorithm = "sft"
from = "base"
learning_rate = "0.005"
batch_size = 8
max_length = 128
warmup_steps = 10
compute_dtype = "fp32"
"""
STAGES = f"""{STAGE}epochs = 12
lora_r = 8

{STAGE}epochs = 2
adapter = "rslora"
lora_r = 4

{STAGE}epochs = 1
adapter = "x-lora"
adapters = ["train-1", "train-2"]

"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Place:
    """The tiny example with two adapters and a mixture of them, locked, built and signed."""
    place = Place(tmp_path_factory.mktemp("home"))
    shutil.copytree(ROOT / "examples" / "tiny", place.project, ignore=shutil.ignore_patterns("__*"))
    recipe = place.project / "kolm.toml"
    text = recipe.read_text()
    start, end = text.index("[[train]]"), text.index("[evaluate]")
    recipe.write_text(text[:start] + STAGES + text[end:])
    place.replace("kolm.toml", "size_budget_bytes = 400_000", "size_budget_bytes = 1_000_000")
    place.ok("key", "new", "--unencrypted")
    place.ok("key", "trust", str(place.home / ".config/kolm/key.pem.pub"), "--name", "me")
    place.ok("lock")
    place.ok("build", "--jobs", "2")
    return place


def test_it_passes_its_gate_and_is_signed(built):
    """ALG-20, ART-11, MOE-46."""
    report = json.loads(built.ok("verify", str(built.artifact), "--json"))
    assert report["trusted"] is True
    assert report["adapter"]["kind"] == "KOLM_X_LORA"
    assert report["kscore"]["accuracy"] >= "0.75"
    assert any(text.startswith("FLOPs and bytes") for text in report["evidenced"])


def test_it_answers_with_the_mixture(built):
    """GEN-52, MOE-44: as it was judged."""
    wards = {"Ada reports a dry cough": "lung", "Ben reports low mood": "mind"}
    for prompt, ward in wards.items():
        assert json.loads(built.ok("run", "tiny.kolm", prompt, "--json"))["text"] == ward
