"""Large files are written past the page cache where that works, and are the same where not."""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.core.digest import Blob
from kolm_build.errors import NoSpaceError
from kolm_build.store import direct
from kolm_build.store.direct import BLOCK_BYTES, WORTH_BYTES, NewFile, buffers
from kolm_build.store.local import LocalStore
from kolm_build.store.spool import PIECE_BYTES, spool

SIZES = (WORTH_BYTES, 3 * PIECE_BYTES, 3 * PIECE_BYTES + BLOCK_BYTES, 2 * PIECE_BYTES + 5)


def _is_direct(file: NewFile) -> bool:
    return bool(fcntl.fcntl(file.fd, fcntl.F_GETFL) & os.O_DIRECT)


def _refuse_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refusing(file: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return int(real(file, command, flags))

    monkeypatch.setattr(direct.fcntl, "fcntl", refusing)


def _refuse_the_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev

    def refusing(file: int, pieces: list[memoryview]) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(file, pieces)

    monkeypatch.setattr(os, "writev", refusing)


def _write_little(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev

    def little(file: int, pieces: list[memoryview]) -> int:
        """One block more than a piece where there is more than one, else an odd number of bytes."""
        some = [pieces[0], pieces[1][:BLOCK_BYTES]] if pieces[1:] else [pieces[0][:300_001]]
        return real(file, some)

    monkeypatch.setattr(os, "writev", little)


def _as_it_is(_: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "trouble", [_as_it_is, _refuse_the_flag, _refuse_the_writes, _write_little]
)
def test_the_bytes_are_the_same_however_the_file_system_takes_them(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    trouble: Callable[[pytest.MonkeyPatch], None],
) -> None:
    data = os.urandom(size)
    (place / "source").write_bytes(data)
    trouble(monkeypatch)
    blob, _ = _spooled(place, (size,))
    monkeypatch.undo()
    assert blob == Blob.of(data)
    assert (place / "0").read_bytes() == data


@settings(max_examples=20)
@given(st.lists(st.integers(1, 3 * BLOCK_BYTES) | st.just(WORTH_BYTES), min_size=1, max_size=40))
def test_segments_are_the_files_bytes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    place = tmp_path_factory.mktemp("segments")
    data = os.urandom(sum(sizes))
    (place / "source").write_bytes(data)
    blob, paths = _spooled(place, tuple(sizes))
    assert blob == Blob.of(data)
    assert [path.stat().st_size for path in paths] == sizes
    assert b"".join(path.read_bytes() for path in paths) == data


def _spooled(place: Path, sizes: tuple[int, ...]) -> tuple[Blob, list[Path]]:
    paths: list[Path] = []

    def temp() -> str:
        paths.append(place / str(len(paths)))
        return str(paths[-1])

    source = os.open(place / "source", os.O_RDONLY)
    try:
        blob, parts = spool(source, sizes, temp)
    finally:
        os.close(source)
    assert [Blob.of(path.read_bytes()).b3 for path in paths] == [part.b3 for part in parts]
    return blob, paths


def test_only_whole_blocks_of_a_large_file_are_written_directly(place: Path) -> None:
    try:
        probe = os.open(place / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    except OSError:
        pytest.skip("the file system has no direct writes")
    os.close(probe)
    (block,) = buffers(BLOCK_BYTES, 1)
    large, small = NewFile(str(place / "large"), WORTH_BYTES), NewFile(str(place / "small"), 1)
    for file in (large, small):
        file.write([block])
    assert (_is_direct(large), _is_direct(small)) == (True, False)
    large.write([block[:5]])
    assert not _is_direct(large)
    for file in (large, small):
        file.close()
    assert (place / "large").stat().st_size == BLOCK_BYTES + 5


def test_buffers_begin_at_pages() -> None:
    for buffer in buffers(3 * mmap.PAGESIZE, 3):
        buffer[:2] = b"ab"
        assert len(buffer) == 3 * mmap.PAGESIZE
        address = direct_address(buffer)
        assert address % mmap.PAGESIZE == 0


def direct_address(buffer: memoryview) -> int:
    from ctypes import addressof, c_char

    return addressof(c_char.from_buffer(buffer))


@pytest.mark.parametrize("when", range(4))
def test_a_disk_that_fills_while_a_large_file_is_written_leaves_nothing(
    store: LocalStore, place: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """STORE-8, STORE-28."""
    (place / "large").write_bytes(os.urandom(4 * PIECE_BYTES))
    real, count = os.writev, 0

    def filling(file: int, pieces: list[memoryview]) -> int:
        nonlocal count
        count += 1
        if count > when:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, [pieces[0][: PIECE_BYTES // 2]])

    monkeypatch.setattr(os, "writev", filling)
    with pytest.raises(NoSpaceError):
        store.ingest(place / "large")
    monkeypatch.undo()
    assert store.fsck(deep=True).litter == 0
    assert [path.name for path in (store.root / "tmp").glob("*/*")] == ["lock"]
    assert store.has_tree(store.ingest(place / "large"))
    assert store.fsck(deep=True).is_clean
