"""The tiny model in four bits: built on what the plain one was built of, judged beside it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = [pytest.mark.ml, pytest.mark.xdist_group("model")]


@dataclass(frozen=True)
class Place:
    """A user's home with the two projects and one store."""

    home: Path

    def kolm(self, project: str, command: str, *argv: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.home),
            "KOLM_STORE": str(self.home / "store"),
        }
        return subprocess.run(
            [sys.executable, "-m", "kolm_build", command, *argv],
            cwd=self.home / project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def ok(self, project: str, command: str, *argv: str) -> subprocess.CompletedProcess[str]:
        done = self.kolm(project, command, *argv)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        return done

    def copy(self, name: str) -> Path:
        project = self.home / name
        shutil.copytree(
            ROOT / "examples" / name, project, ignore=shutil.ignore_patterns("__*", "*.kolm")
        )
        return project


def nodes(done, status):
    """The nodes of which a build said that they were built, or found."""
    lines = [line.split() for line in done.stderr.splitlines()]
    return {words[0] for words in lines if words[1:2] == [status]}


@pytest.fixture(scope="module")
def locked(tmp_path_factory) -> Place:
    """Both examples, locked; nothing is built."""
    place = Place(tmp_path_factory.mktemp("home"))
    for name in ("tiny", "tiny-int4"):
        place.copy(name)
        place.ok(name, "lock")
    return place


@pytest.fixture(scope="module")
def targets(locked) -> dict[str, subprocess.CompletedProcess[str]]:
    """What is said of devices, in this order, before anything is trained."""
    return {
        "unknown": locked.ok("tiny-int4", "build", "--dry-run", "--target", "raspberry-pi-5"),
        "refused": locked.kolm("tiny-int4", "build", "--target", "raspberry-pi-4:300M"),
        "explained": locked.ok("tiny-int4", "explain", "--target", "raspberry-pi-4:300M"),
        "planned": locked.ok(
            "tiny-int4", "build", "--dry-run", "--json", "--target", "reference-cpu:1G"
        ),
        "full": locked.ok("tiny", "build", "--dry-run", "--json", "--target", "reference-cpu:1G"),
        "misspelt": locked.kolm("tiny-int4", "explain", "--target", "raspbery-pi-5"),
    }


@pytest.fixture(scope="module")
def built(locked, targets) -> Place:
    """The plain model built, then the quantised one in the same store."""
    locked.ok("tiny", "build", "--no-sign")
    return locked


@pytest.fixture(scope="module")
def quantised(built) -> subprocess.CompletedProcess[str]:
    return built.ok("tiny-int4", "build", "--no-sign", "--target", "two-core-x86")


def forecast(done):
    """The event of that name."""
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (found,) = [event for event in events if event["event"] == "forecast"]
    return found


def test_before_there_is_a_base_nobody_knows_whether_it_fits(targets):
    """CLI-32."""
    assert "not known before the base is built" in targets["unknown"].stdout


def test_what_does_not_fit_is_refused_before_anything_is_trained(targets):
    """CLI-30."""
    refused = targets["refused"]
    assert refused.returncode == 2
    assert "does not fit raspberry-pi-4" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert nodes(refused, "built") == {"base", "base-source"}


def test_asked_only_to_say_it_refuses_nothing(targets):
    """CLI-30."""
    assert "raspberry-pi-4 (300 MiB): does not fit" in targets["explained"].stdout


def test_a_misspelt_device_gets_a_suggestion(targets):
    assert targets["misspelt"].returncode == 2
    assert "Did you mean 'raspberry-pi-5'?" in targets["misspelt"].stderr


def test_the_forecast_tells_the_quantised_model_from_the_full_one(targets):
    small, full = forecast(targets["planned"]), forecast(targets["full"])
    assert small["fits"] is True
    assert small["target"] == "reference-cpu"
    assert small["parameters"] == full["parameters"] == 90_688
    assert small["weight_bytes"] < full["weight_bytes"] / 4


def test_nothing_that_the_plain_model_was_built_of_is_built_again(quantised):
    """RECIPE-34: not even its evaluation, which is that of the full model here."""
    assert nodes(quantised, "built") == {"quantise", "evaluation", "score", "gate", "package"}


def test_the_stages_have_the_derivations_of_the_plain_model(built):
    told = [
        json.loads(built.ok(name, "show", "train-1", "--json").stdout)["derivation"]
        for name in ("tiny", "tiny-int4")
    ]
    assert told[0] == told[1]


def test_the_weights_are_as_large_as_was_told(built, targets, quantised):
    shown = json.loads(built.ok("tiny-int4", "show", "tiny-int4.kolm", "--json").stdout)
    size = int(shown["members"]["model/model.safetensors"].split()[0])
    told = forecast(targets["planned"])["weight_bytes"]
    assert 0 < size - told < 16_000  # the header
    bits = float(shown["quantisation"]["bits_per_weight"])
    assert bits == pytest.approx(8 * told / 90_688, abs=1e-3)


def test_both_models_figures_are_told_side_by_side(built, quantised):
    assert "in full precision" in quantised.stderr
    assert "w4a16 by rtn" in quantised.stderr
    plain = json.loads(built.ok("tiny", "show", "tiny.kolm", "--json").stdout)
    shown = json.loads(built.ok("tiny-int4", "show", "tiny-int4.kolm", "--json").stdout)
    assert shown["quantisation"]["full_kscore"] == plain["kscore"]
    assert shown["kscore"]["size"] == "1.0000"


def test_it_verifies_and_both_scores_are_recomputed(built, quantised):
    """EVI-6, EVI-12: operations and bytes too, from the headers of packed weights."""
    report = json.loads(
        built.ok("tiny-int4", "verify", "tiny-int4.kolm", "--no-trust", "--json").stdout
    )
    assert any("full precision" in text for text in report["evidenced"])
    assert any("FLOPs and bytes" in text for text in report["evidenced"])
    assert report["quantisation"]["scheme"] == "w4a16"


def test_the_quantised_model_answers_from_its_file(built, quantised):
    answer = built.ok("tiny-int4", "run", "tiny-int4.kolm", "Ada reports a dry cough", "--json")
    assert json.loads(answer.stdout)["text"] == "lung"


def test_a_second_build_does_no_step(built, quantised):
    again = built.ok("tiny-int4", "build", "--no-sign")
    assert not nodes(again, "built")
