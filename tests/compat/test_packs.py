"""A pack that an earlier version wrote is taken in, and rebuilt by the code that it brings."""

import io
from pathlib import Path

import pytest

from kolm_build.core.outputs import parse_outputs
from kolm_build.store.packfile import PackFile
from kolm_build.store.unpacker import check_pack
from kolm_build.surfaces.cli.door import through_door
from kolm_build.surfaces.cli.parser import dispatch
from kolm_build.surfaces.terminal import Terminal

PACKS = sorted(Path(__file__).parent.glob("pack-v*/*.kolmpack"))
IDS = {
    "pack-v1": "b3:557fc92d73bd2ff5f76ad5530771e433ea31f9ccca6820bc328318244dfae994",
}  # fmt: skip


@pytest.fixture(params=PACKS, ids=lambda path: path.parent.name)
def pack(request) -> Path:
    return request.param


def kolm(*argv: str) -> tuple[int, str]:
    told = io.StringIO()
    terminal = Terminal(out=told, err=told)
    return through_door(lambda: dispatch(argv, terminal), argv, terminal), told.getvalue()


def test_there_is_a_pack_of_every_version():
    assert {path.parent.name for path in PACKS} == set(IDS)


def test_it_holds_and_has_the_id_that_it_had(pack):
    """PACK-2, PACK-3."""
    with PackFile.open(pack) as file:
        check_pack(file)
        assert str(file.id) == IDS[pack.parent.name]


def test_it_is_imported_and_rebuilt_to_what_it_says(pack, tmp_path, monkeypatch):
    """PACK-20: what `kolm.outputs` in the pack names, by the code in the pack."""
    monkeypatch.setenv("KOLM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))
    status, told = kolm("import", str(pack), "--project", str(tmp_path / "project"))
    assert status == 0, told
    expected = parse_outputs((tmp_path / "project" / "kolm.outputs").read_text("utf-8"))
    monkeypatch.chdir(tmp_path / "project")
    status, told = kolm("rebuild", "--offline")
    assert status == 0, told
    rebuilt = {line.split()[-1] for line in told.splitlines() if line.startswith("identical")}
    assert rebuilt <= {str(entry.tree) for entry in expected.entries}
    assert rebuilt
