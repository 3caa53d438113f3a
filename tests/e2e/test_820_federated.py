"""`kolm federated`: three sites, three processes, three stores; nobody sees another's rows."""

import json
import shutil
import subprocess

import pytest

from kolm_build.errors import RoundError
from kolm_build.surfaces.federated.federation import confined
from tests.cli.command import ROOT, kolm, kolm_process

TINY = ROOT / "examples" / "federated" / "tiny"
SITES = ("north", "south", "west")


def bytes_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def texts_of(site):
    lines = (TINY / site / "rows.jsonl").read_text().splitlines()
    return [json.loads(line)["text"].encode() for line in lines]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The tiny federation, each site one pass over its rows."""
    root = tmp_path_factory.mktemp("examples")
    shutil.copytree(TINY, root / "federated" / "tiny")
    (root / "tiny").mkdir()
    shutil.copy(ROOT / "examples" / "tiny" / "model.py", root / "tiny")
    path = root / "federated" / "tiny" / "federation.toml"
    path.write_text(path.read_text().replace("epochs = 8", "epochs = 1"))
    return path.parent


@pytest.mark.ml
def test_three_sites_train_and_no_row_leaves_its_site(tmp_path, example):
    """FED-65, FED-100, FED-101: a round; then another, with noise refused for its other plan."""
    parties = tmp_path / "parties"
    common = (str(example), "--folder", str(parties), "--threads", "1", "--json")
    answer = kolm_process("federated", *common, "--rounds", "1")
    assert answer.status == 0, answer
    (told,) = [json.loads(line) for line in answer.out.splitlines()]
    assert told["round"] == 1
    assert told["masks"] is True
    assert told["survivors"] == list(SITES)
    assert told["refused"] == {}
    assert told["judged"] == 24
    assert told["adapter"].startswith("b3:")
    assert float(told["update_norm"]) > 0
    stores = {name: bytes_below(parties / name / "store") for name in (*SITES, "aggregator")}
    for name in SITES:
        assert told["sites"][name] == len(texts_of(name)) - _held_out(parties / name)
        for text in texts_of(name):
            assert text in stores[name]
            assert not any(text in stores[other] for other in stores if other != name)
    other = kolm_process("federated", *common, "--rounds", "1", "--no-masks")
    assert other.status & 8, other
    assert "plan" in other.err


def _held_out(folder):
    found = [
        path.read_bytes().count(b'"answer":')
        for path in (folder / "store").rglob("*")
        if path.is_file() and path.read_bytes().startswith(b'{"answer":')
    ]
    return min(found)


@pytest.mark.parametrize("command", [("cat", "{other}/file"), ("touch", "{hidden}/file")])
def test_a_sites_process_sees_no_other_folder_and_writes_to_its_own_alone(tmp_path, command):
    """FED-100."""
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / "file").write_text("mine")
    words = [word.format(other=other, hidden=ROOT) for word in command]
    done = subprocess.run([*confined(own, tmp_path), *words], capture_output=True, check=False)
    assert done.returncode != 0
    good = [*confined(own, tmp_path), "sh", "-c", "cat file && touch new && ls .."]
    answer = subprocess.run(good, capture_output=True, text=True, check=True)
    assert answer.stdout == "mineown\n"
    assert not (ROOT / "file").exists()


def site_that_runs(tmp_path, monkeypatch, code):
    """A site whose process runs `code` in place of kolm."""
    import sys

    from kolm_build.surfaces.federated import federation

    command = [sys.executable, "-c", code]
    monkeypatch.setattr(federation, "confined", lambda _folder, _hidden: [*command, "--"])
    return federation.SiteProcess("north", tmp_path, hidden=tmp_path, arguments=(), patience_s=1)


def test_a_site_that_does_not_answer_falls_out(tmp_path, monkeypatch):
    """FED-68: it is ended, so that no late answer is taken for another."""
    site = site_that_runs(tmp_path, monkeypatch, "import sys; sys.stdin.buffer.read()")
    site.send("hello")
    with pytest.raises(RoundError, match="in time"):
        site.receive()
    with pytest.raises(RoundError, match="gone"):
        site.send("open", adapter=b"x" * (1 << 20))
    site.stop()


@pytest.mark.parametrize("code", ["pass", "print('noise')"])
def test_a_site_that_dies_or_babbles_falls_out(tmp_path, monkeypatch, code):
    """FED-68."""
    site = site_that_runs(tmp_path, monkeypatch, code)
    with pytest.raises(RoundError, match="gone"):
        site.receive()
    site.stop()


def test_a_sites_process_has_no_network(tmp_path):
    """FED-100."""
    devices = subprocess.run(
        [*confined(tmp_path, tmp_path), "cat", "/proc/self/net/dev"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


def test_a_folder_without_a_federation_is_refused(tmp_path):
    answer = kolm("federated", str(tmp_path))
    assert answer.status == 2
    assert "federation.toml" in answer.err


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["--method", "flora"], "masks"),
        (["--method", "nothing"], "method"),
        (["--noise", "much"], "noise_multiplier"),
        (["--method", "scaffold"], "training"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused_before_anything_starts(arguments, where, tmp_path):
    """FED-6."""
    answer = kolm("federated", str(TINY), "--folder", str(tmp_path / "f"), *arguments)
    assert answer.status == 2
    assert where in answer.err
    assert not (tmp_path / "f").exists()
