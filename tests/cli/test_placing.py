"""Folders and files are put in their place whole, or what was there stays."""

from pathlib import Path

import pytest

from kolm_build.surfaces.placing import put, room_beside


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch):
    """CLI-38."""
    dest = tmp_path / "out"
    dest.mkdir()
    (dest / "mine").write_text("mine")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "made":
            raise OSError(5, "Input/output error", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with room_beside(dest) as room:
        (room / "made").mkdir()
        with pytest.raises(OSError, match="Input/output error"):
            put(room / "made", dest, aside=room / "before")
    assert (dest / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    """CLI-38."""
    kept, dest = tmp_path / "kept", tmp_path / "out"
    kept.mkdir()
    dest.symlink_to(kept)
    with room_beside(dest) as room:
        (room / "made").write_text("new")
        put(room / "made", dest, aside=room / "before")
    assert (dest.is_symlink(), dest.read_text(), kept.is_dir()) == (False, "new", True)
