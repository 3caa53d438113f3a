"""A real model, small: from recipe to signed file, verified, asked, rebuilt from nothing."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kolm_build.attest.keys import load
from kolm_build.core.split import is_holdout
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.substituting import signed
from tests.e2e.tiny import ROOT, Place

NOBODY = 65534

pytestmark = [pytest.mark.ml, pytest.mark.xdist_group("model")]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Place:
    """The tiny example, locked, built and signed."""
    return Place.copied(tmp_path_factory.mktemp("home")).built()


@pytest.fixture
def copy(built, tmp_path) -> Place:
    """The project of `built`, to be changed, with its store."""
    place = Place(tmp_path / "copy")
    shutil.copytree(built.home, place.home, symlinks=True)
    return place


def test_the_file_is_signed_and_holds(built):
    report = json.loads(built.ok("verify", str(built.artifact), "--json"))
    assert report["trusted"] is True
    assert [signed["signer"] for signed in report["signatures"]] == ["me"]
    assert report["kscore"]["accuracy"] >= "0.75"


def test_a_flipped_byte_is_refused(built, tmp_path):
    data = bytearray(built.artifact.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.kolm").write_bytes(data)
    done = built.kolm("verify", str(tmp_path / "bad.kolm"))
    assert done.returncode == 64
    assert "Traceback" not in done.stderr


def test_the_model_answers_from_its_file(built):
    answer = json.loads(built.ok("run", "tiny.kolm", "Ada reports a dry cough", "--json"))
    assert answer["text"] == "lung"


def test_a_second_build_does_no_step_and_writes_the_same_file(built):
    before = built.artifact.read_bytes()
    done = built.kolm("build")
    assert done.returncode == 0
    assert " built in " not in done.stderr
    assert built.artifact.read_bytes() == before


def test_from_nothing_elsewhere_as_somebody_else_it_is_the_same(built, tmp_path):
    stranger = Place(tmp_path / "far" / "away")
    stranger.home.mkdir(parents=True)
    shutil.copy(built.artifact, stranger.home / "x.kolm")
    (stranger.home / "x.kolm").chmod(0o644)
    user = _somebody_else(tmp_path, stranger.home)
    done = stranger.kolm(
        "rebuild",
        "x.kolm",
        cwd=stranger.home,
        umask=0o027,
        prefix=() if user else _elsewhere(),
        environment={
            "LANG": "tr_TR.UTF-8",
            "LC_ALL": "C",
            "PYTHONHASHSEED": "4711",
            "TZ": "Pacific/Chatham",
            "TMPDIR": str(stranger.home),
        },
        **user,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"identical: package  {built.id()}\n"


def test_from_its_pack_alone_without_a_network_it_verifies_and_is_rebuilt(built, tmp_path):
    """PACK-20."""
    pack = str(tmp_path / "tiny.kolmpack")
    built.ok("export", "--rebuildable", "-o", pack)
    stranger = Place(tmp_path / "far")
    stranger.home.mkdir()
    alone = ("unshare", "-rn")
    if subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("no network namespaces here")
    stranger.ok("import", pack, "--project", str(stranger.project), cwd=tmp_path, prefix=alone)
    assert stranger.artifact.read_bytes() == built.artifact.read_bytes()
    report = stranger.ok("verify", "tiny.kolm", "--trust", "trust.toml", "--json", prefix=alone)
    assert json.loads(report)["trusted"] is True
    told = stranger.ok("rebuild", "tiny.kolm", "--offline", prefix=alone)
    assert told == f"identical: package  {built.id()}\n"


def _elsewhere() -> list[str]:
    """What gives the machine another name, where that is allowed."""
    command = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    if os.geteuid() or subprocess.run([*command, "true"], check=False).returncode:
        return []
    return command


def _somebody_else(top: Path, home: Path) -> dict[str, object]:
    """Another user, where that is allowed and may read this interpreter; without its own name."""
    if os.geteuid():
        return {}
    for folder in (top, *top.parents, home.parent):
        if str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    for path in (home, *home.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    try:
        probe = [sys.executable, "-c", "import kolm_build"]
        subprocess.run(probe, cwd=home, env={"PYTHONPATH": str(ROOT)}, check=True, **user)
    except (OSError, subprocess.CalledProcessError):
        os.chown(home, 0, 0)
        return {}
    return user


def test_a_trainings_figures_are_told_and_drawn(built, tmp_path):
    """CLI-33, CLI-34: the same picture twice; nothing is drawn of a node that trains nothing."""
    told = json.loads(built.ok("show", "train-1", "--json"))["metrics"]
    loss = told["figures"]["loss"]
    assert float(loss["last"]) < float(loss["first"]) <= float(loss["greatest"])
    lines = built.ok("show", "train-1").splitlines()
    assert f"metrics: {told['steps']} steps" in lines
    assert any(line.startswith("  loss ") and "█" in line for line in lines)
    drawn = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in drawn:
        built.ok("show", "train-1", "--plot", str(path))
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    assert drawn[0].read_text().startswith("<svg ")
    for node in ("dataset", "tiny.kolm"):
        done = built.kolm("show", node, "--plot", str(tmp_path / "c.svg"))
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
    assert "metrics" not in json.loads(built.ok("show", "dataset", "--json"))
    assert not (tmp_path / "c.svg").exists()
    assert built.kolm("show", "train-1", "--plot", str(tmp_path / "no/d.svg")).returncode != 0


def test_a_reformatted_script_retrains_nothing(copy):
    copy.ok("build")  # here, so that there is a build to compare with
    before = copy.id()
    copy.replace("rows.py", "import json\n", "import json  # to write rows\n")
    copy.ok("lock")
    done = copy.kolm("build")
    assert done.returncode == 0, done.stderr
    ran = [line.split()[0] for line in done.stderr.splitlines() if " built in " in line]
    assert ran == ["rows", "package"]
    told = copy.ok("explain")
    assert "rows: changed (built)" in told
    assert "so these were not built again: dataset, base-evaluation, train-1" in told
    assert copy.id() != before  # the file tells its story, and the script is part of it


def test_one_byte_of_one_training_row_makes_another_model(copy):
    before = json.loads(copy.ok("show", "tiny.kolm", "--json"))
    index = _training_row(copy)
    copy.replace("rows.py", "    rows.sort(", f"    rows[{index}]['text'] += '.'\n    rows.sort(")
    copy.ok("lock")
    copy.ok("build")
    after = json.loads(copy.ok("show", "tiny.kolm", "--json"))
    assert after["artifact"] != before["artifact"]
    assert after["weights"] != before["weights"]
    done = copy.kolm("diff", "base", "merge-1")
    assert done.returncode == 16
    assert "q_proj.weight: values differ from element" in done.stdout


def _training_row(place: Place) -> int:
    """The index of a row that is trained on, as it is and with a full stop at its end."""
    spec = importlib.util.spec_from_file_location("rows", place.project / "rows.py")
    rows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rows)
    texts = [
        f"{person} reports {complaint}"
        for complaints in rows.WARDS.values()
        for complaint in complaints
        for person in rows.PEOPLE
    ]
    sides = [[is_holdout(key, "tiny", 5) for key in (text, f"{text}.")] for text in texts]
    return sides.index([False, False])


def test_a_failed_gate_leaves_no_file_and_shows_the_term_and_the_worst_rows(copy):
    copy.artifact.unlink()
    copy.replace("kolm.toml", "epochs = 20", "epochs = 20\nmax_steps = 2")
    copy.ok("lock")
    done = copy.kolm("build")
    assert done.returncode == 32
    assert not copy.artifact.exists()
    assert "accuracy" in done.stderr
    assert "said" in done.stderr
    assert "expected: at least 0.85" in done.stderr
    assert sorted(path.name for path in copy.project.iterdir()) == [
        "kolm.lock", "kolm.toml", "model.py", "rows.py",
    ]  # fmt: skip


def test_what_was_built_without_a_sandbox_is_not_signed(copy):
    copy.replace("kolm.toml", 'k_min = "0.85"', 'k_min = "0.84"')
    copy.ok("lock")
    done = copy.kolm("build", "--sandbox", "none")
    assert done.returncode == 0, done.stderr
    assert "not signed: built without a sandbox: gate, package" in done.stderr
    report = json.loads(copy.ok("verify", "tiny.kolm", "--no-trust", "--json"))
    assert report["signatures"] == []
    refused = copy.kolm("build", "--key", str(copy.home / ".config/kolm/key.pem"))
    assert refused.returncode == 1
    assert "what was built without a sandbox is not signed" in refused.stderr


def test_an_artifact_holds_by_the_claims_that_its_lock_asks_for(copy):
    """GRADE-4, GRADE-6."""
    with (copy.project / "kolm.toml").open("a") as file:
        file.write('\n[release]\nminimum_grade = "R1"\n')
    copy.ok("lock")
    copy.artifact.unlink()
    store = copy.home / "store"
    _sign_claims(copy, runs=1)
    assert copy.kolm("build").returncode == 64  # the package is new, and nobody signed that
    assert not copy.artifact.exists()
    _sign_claims(copy, runs=2)
    assert "built" not in copy.kolm("build").stderr
    assert "shown to be of the grade R1" in copy.ok("verify", "tiny.kolm", "--claims", str(store))
    copy.ok("verify", "tiny.kolm", "--no-trust")
    refused = copy.kolm("verify", "tiny.kolm")
    assert refused.returncode == 64
    assert "holds no claims" in refused.stderr
    with LocalStore.open(copy.home / "empty"):
        pass
    refused = copy.kolm("verify", "tiny.kolm", "--claims", str(copy.home / "empty"))
    assert refused.returncode == 64
    assert "no valid claim" in refused.stderr


def _sign_claims(place: Place, *, runs: int) -> None:
    """Sign all claims of a store, as of so many runs."""
    key = load(place.home / ".config" / "kolm" / "key.pem", passphrase=None)
    with LocalStore.open(place.home / "store") as store:
        for path in [one for one in (place.home / "store" / "real").rglob("*") if one.is_file()]:
            claim = StoredRealisation.decode(path.read_bytes())
            for number in range(runs if claim.envelope is None else 0):
                facts = {**claim.circumstances, "wall_ms": number}
                store.add_claim(signed(replace(claim, circumstances=facts), key))


def test_the_artifact_goes_out_as_gguf_and_back_into_a_folder(built, tmp_path):
    """EXPORT-1, EXPORT-5: twice, in two stores, the same file; it names the artifact."""
    from kolm_build.steps._gguf import read_gguf

    told = []
    for number in (1, 2):
        out = tmp_path / f"{number}.gguf"
        argv = ("export", str(built.artifact), "--format", "gguf-q8_0", "-o", str(out), "--json")
        store = () if number == 1 else ("--store", str(tmp_path / "store"))
        told.append(json.loads(built.ok(*argv, *store)))
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()
    (tmp_path / "1.gguf").write_bytes(b"mine")
    built.ok(*argv[:-2], str(tmp_path / "1.gguf"), "--force")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()
    assert told[0] | {"path": ""} == told[1] | {"path": ""}
    assert read_gguf(tmp_path / "1.gguf").values["kolm.source"] == built.id()
