"""Files that the command line writes."""

from kolm_build.surfaces.files import write_whole


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "kolm.lock"
    path.write_bytes(b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert not list(tmp_path.glob(".kolm.lock*"))


def test_a_link_stays_a_link_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "lockfiles").mkdir()
    link = tmp_path / "kolm.lock"
    link.symlink_to("lockfiles/example.lock")
    write_whole(link, b"first")
    write_whole(link, b"second")
    assert link.is_symlink()
    assert (tmp_path / "lockfiles" / "example.lock").read_bytes() == b"second"
