"""X-LoRA through the command line: two adapters, a mixture of them, judged and shipped."""

import pytest

from tests.e2e.tiny import Place

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
    place = Place.copied(tmp_path_factory.mktemp("home"))
    recipe = place.project / "kolm.toml"
    text = recipe.read_text()
    start, end = text.index("[[train]]"), text.index("[evaluate]")
    recipe.write_text(text[:start] + STAGES + text[end:])
    place.replace("kolm.toml", "size_budget_bytes = 400_000", "size_budget_bytes = 1_000_000")
    return place.built()


def test_it_passes_its_gate_and_is_signed(built):
    """ALG-20, ART-11, MOE-46."""
    built.check_passed_its_gate("KOLM_X_LORA")


def test_it_answers_with_the_mixture(built):
    """GEN-52, MOE-44: as it was judged."""
    built.check_answers()
