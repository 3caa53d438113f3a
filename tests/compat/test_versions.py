"""What an earlier version wrote is read, verified and rebuilt to the same bytes, for good."""

import io
import shutil
from pathlib import Path

import pytest

from kolm_build.attest.trust import parse_trust
from kolm_build.attest.verify import verify_artifact
from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.lock import parse_lock, render_lock
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.cli.door import through_door
from kolm_build.surfaces.cli.parser import dispatch
from kolm_build.surfaces.cli.terminal import Terminal

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "kolm.toml").exists())


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def fixture(request, tmp_path):
    """A copy of one version's fixtures: opening a store may write to it."""
    folder = tmp_path / "fixture"
    shutil.copytree(request.param, folder, symlinks=True)
    for path in (folder / "objects").glob("*/**/*"):
        if path.is_file():
            path.chmod(0o444)  # git keeps no other modes than 0644 and 0755
    return folder


def test_there_are_fixtures_of_the_first_version():
    assert "v1" in [path.name for path in VERSIONS]


def test_the_lock_is_read_and_would_be_written_the_same(fixture):
    text = (fixture / "kolm.lock").read_text("utf-8")
    assert render_lock(parse_lock(text, file="kolm.lock")) == text


def test_derivations_keep_their_digests(fixture):
    records = [path for path in (fixture / "objects" / "drv").rglob("*") if path.is_file()]
    assert records
    for path in records:
        derivation = Derivation.decode(path.read_bytes())
        assert derivation.digest.hex in str(path).replace("/", "")


def test_the_store_is_whole(fixture):
    with LocalStore.open(fixture / "objects") as store:
        assert store.fsck().findings == ()


def test_every_output_is_rebuilt_by_the_code_of_its_time(fixture):
    """The code in the store runs, not the code that is installed."""
    told = io.StringIO()
    terminal = Terminal(out=told, err=told)
    argv = ("build", "--check", "-C", str(fixture), "--store", str(fixture / "objects"))
    status = through_door(lambda: dispatch(argv, terminal), argv, terminal)
    assert status == 0, told.getvalue()
    assert told.getvalue().count("verified") == 2, told.getvalue()


def test_the_artifact_verifies(fixture):
    trust = parse_trust((fixture / "trust.toml").read_bytes(), "trust.toml")
    report = verify_artifact(fixture / "artifact.kolm", trust=trust)
    assert report.trusted
    assert Digest.parse(report.manifest_b3)
