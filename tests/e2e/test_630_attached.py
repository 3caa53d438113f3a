"""A mixture of adapters through the command line: judged, packaged, verified, asked, rebuilt."""

import pytest

from tests.e2e.tiny import Place

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
    place = Place.copied(tmp_path_factory.mktemp("home"))
    place.replace("kolm.toml", '[[train]]\nalgorithm = "sft"\n', TRAIN)
    place.replace("kolm.toml", "epochs = 20", "epochs = 12")
    place.replace("kolm.toml", "lora_r = 16", "lora_r = 8")
    place.replace("kolm.toml", "size_budget_bytes = 400_000", "size_budget_bytes = 1_000_000")
    return place.built()


def test_it_passes_its_gate_and_is_signed(built):
    """ALG-20, ART-11: the gate judged what is shipped."""
    built.check_passed_its_gate("KOLM_MOE_LORA")


def test_it_answers_with_the_mixture(built):
    """GEN-52: as it was judged; the base knows nothing."""
    built.check_answers()


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
