"""Wheels: unpacked only if every byte is what list and RECORD say, and below one folder."""

import stat
import subprocess
import sys
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kolm_build.engine.environment import capture
from kolm_build.engine.installed import installed
from kolm_build.engine.probe import probe_interpreter
from kolm_build.engine.wheel import unpack_wheel
from kolm_build.engine.wheel_list import Listed
from kolm_build.errors import InvalidRecordError, MachineMismatchError, WrongContentError
from tests.engine.wheels import contents, hashed, wheel, write

FILES = {"alpha/__init__.py": "A = 1\n", "alpha/data,with comma.txt": "d"}


def listed(file, name="alpha", version="1.0"):
    digest = sha256(file.read_bytes()).hexdigest()
    return Listed(
        name=name, version=version, digests=frozenset({digest}), file="list.txt", where="line 7"
    )


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture
def refused(tmp_path):
    """Unpack a wheel of these members and hand out the error; it looks installed to nobody."""

    def refused(members):
        file = write(tmp_path / "bad", members, stem="alpha-1.0")
        with TemporaryDirectory(dir=tmp_path) as site:
            with pytest.raises(InvalidRecordError) as caught:
                unpack_wheel(file, Path(site), listed(file))
            assert not Path(site, "alpha-1.0.dist-info", "RECORD").exists()
        assert caught.value.file == str(file)
        assert caught.value.expected
        return caught.value

    return refused


def test_a_wheel_and_its_installation_are_one_distribution(tmp_path, site):
    """WHEEL-7: installed by pip and taken down, or unpacked here: the same digests."""
    data = {
        **FILES,
        "alpha/cached.pyc": b"compiled",
        "alpha-1.0.data/purelib/alpha/more.py": "M = 1\n",
        "alpha-1.0.data/platlib/alpha/native.so": b"\x7fELF",
        "alpha-1.0.data/scripts/tool": "#!python\n",
        "alpha-1.0.data/data/share/man/alpha.1": "manual",
        "alpha-1.0.data/headers/alpha.h": "",
        "alpha-1.0.dist-info/entry_points.txt": "[console_scripts]\nalpha = alpha:A\n",
    }
    files = [
        wheel(tmp_path, "alpha", "1.0", data, ["beta>=1"]),
        wheel(tmp_path, "beta", "1.5", {"beta/__init__.py": "", "alpha/__init__.py": "A = 1\n"}),
    ]
    for file in files:
        unpack_wheel(file, site, listed(file, *file.name.split("-")[:2]))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-index"]
    subprocess.run([*pip, "--compile", *map(str, files)], check=True)
    ours = capture(["alpha"], interpreter=replace(probe_interpreter(), site=site))
    theirs = capture(["alpha"], interpreter=probe_interpreter(python))
    assert ours == theirs
    assert ours.digest == theirs.digest
    assert sorted(one.name for one in ours.distributions) == ["alpha", "beta"]
    assert not list(site.rglob("*.pyc"))
    assert not (site / "alpha-1.0.data").exists()


def test_what_is_unpacked_says_what_it_has(tmp_path, site):
    """WHEEL-7."""
    file = wheel(tmp_path, "alpha", "1.0", FILES)
    unpack_wheel(file, site, listed(file))
    rows = installed(site)["alpha"].rows()
    assert rows["alpha/__init__.py"] == hashed(b"A = 1\n")
    assert set(rows) == {*FILES, "alpha-1.0.dist-info/METADATA", "alpha-1.0.dist-info/WHEEL"}


def test_bytes_that_are_not_listed_are_not_opened(tmp_path, site):
    """WHEEL-4."""
    file = wheel(tmp_path, "alpha", "1.0", FILES)
    wanted = listed(file)
    file.write_bytes(b"PK" + file.read_bytes())
    with pytest.raises(WrongContentError) as caught:
        unpack_wheel(file, site, wanted)
    assert (caught.value.file, caught.value.where) == ("list.txt", "line 7")
    assert caught.value.expected != caught.value.actual
    assert list(site.iterdir()) == []


def test_a_record_that_lies_is_refused(refused):
    """WHEEL-5: another hash, another size, a file it does not name, a file that is not there."""
    record = "alpha-1.0.dist-info/RECORD"
    sound = contents("alpha", "1.0", FILES)
    row = "alpha/__init__.py,{},6\n".format(hashed(b"A = 1\n")).encode()
    assert row in sound[record]
    lies = {
        "not what the wheel's RECORD says": [
            row.replace(hashed(b"A = 1\n").encode(), hashed(b"A = 2\n").encode()),
            row.replace(b",6\n", b",7\n"),
        ],
        "does not name": [b""],
        "lacks a file": [row + row.replace(b"__init__", b"gone")],
        "a path twice": [row + row],
        "without a hash or size": [
            b"alpha/__init__.py,,\n", b"alpha/__init__.py,md5=x,6\n", b"alpha/__init__.py\n",
        ],
    }  # fmt: skip
    for reason, rows in lies.items():
        for lie in rows:
            error = refused({**sound, record: sound[record].replace(row, lie)})
            assert reason in error.reason
            assert error.advice


@pytest.mark.parametrize(
    "path",
    ["../out.py", "/out.py", "a/../../out.py", "a//b.py", "./b.py", "a\\b.py", "C:\\b.py",
     "a/\x07.py", "a/e\u0301.py"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(refused, tmp_path, path):
    """WHEEL-6."""
    before = sorted(tmp_path.rglob("*"))
    refused(contents("alpha", "1.0", {**FILES, path: "x"}))
    (made,) = [one for one in sorted(tmp_path.rglob("*")) if one not in before and one.is_file()]
    assert made.suffix == ".whl"


def test_a_name_with_a_nul_is_refused(tmp_path, site):
    """WHEEL-6: the archive's reader would cut it off there."""
    file = wheel(tmp_path, "alpha", "1.0", {"alphaX.py": "A = 1\n"})
    file.write_bytes(file.read_bytes().replace(b"alphaX.py", b"alpha\0.py"))
    with pytest.raises(InvalidRecordError, match="NUL"):
        unpack_wheel(file, site, listed(file))


def test_links_special_files_and_folders_of_others_are_refused(refused, tmp_path, site):
    """WHEEL-6."""
    for path in ("alpha-1.0.data/other/x.py", "alpha-1.0.data/purelib/beta-1.dist-info/METADATA"):
        assert "folder" in refused(contents("alpha", "1.0", {path: "x"})).reason
    for more in ("beta-1.0.dist-info/METADATA", "alpha-2.0.dist-info/METADATA"):
        assert "one distribution" in refused(contents("alpha", "1.0", {more: "x"})).reason
    file = tmp_path / "link" / "alpha-1.0-py3-none-any.whl"
    file.parent.mkdir()
    members = contents("alpha", "1.0", {"link": "/etc/passwd"})
    for mode in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        with zipfile.ZipFile(file, "w") as archive:
            for path, data in members.items():
                info = zipfile.ZipInfo(path)
                info.external_attr = (mode if path == "link" else stat.S_IFREG) << 16
                archive.writestr(info, data)
        with pytest.raises(InvalidRecordError, match="a link or a special file"):
            unpack_wheel(file, site, listed(file))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path, site):
    """WHEEL-6."""
    file = write(tmp_path, contents("alpha", "1.0", FILES), stem="alpha-1.0")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("alpha/__init__.py", "A = 1\n")
    with pytest.raises(InvalidRecordError, match="two files of one name"):
        unpack_wheel(file, site, listed(file))


def test_a_wheel_that_grows_without_bounds_is_refused(tmp_path, site, monkeypatch):
    """WHEEL-6."""
    monkeypatch.setattr("kolm_build.engine.wheel._SPARE_BYTES", 0)
    monkeypatch.setattr("kolm_build.engine.wheel._MAX_RATIO", 100)
    file = wheel(tmp_path, "alpha", "1.0", {"zeros": bytes(10_000_000)})
    with pytest.raises(InvalidRecordError, match="grows too much"):
        unpack_wheel(file, site, listed(file))


def test_what_is_not_a_wheel_is_refused(tmp_path, site):
    """WHEEL-4, WHEEL-6."""
    file = wheel(tmp_path, "alpha", "1.0", FILES)
    sound = file.read_bytes()
    for damaged in (b"", b"not a zip", sound[:-30], sound[: len(sound) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(InvalidRecordError, match="not a wheel"):
            unpack_wheel(file, site, listed(file))
    info = "alpha-1.0.dist-info"
    for name in ("METADATA", "WHEEL", "RECORD"):
        members = contents("alpha", "1.0", FILES)
        del members[f"{info}/{name}"]
        file = write(tmp_path / "less", members, stem="alpha-1.0")
        with pytest.raises(InvalidRecordError, match="lacks a file"):
            unpack_wheel(file, site, listed(file))


def test_a_wheel_of_another_name_version_format_or_machine_is_refused(tmp_path, site):
    """WHEEL-4."""
    file = wheel(tmp_path, "alpha", "1.0", FILES)
    for name, version in (("beta", "1.0"), ("alpha", "1.1")):
        with pytest.raises(InvalidRecordError, match="another distribution"):
            unpack_wheel(file, site, listed(file, name, version))
    other = write(tmp_path / "x", contents("beta", "1.0", {}), stem="alpha-1.0")
    with pytest.raises(InvalidRecordError, match="another distribution is inside"):
        unpack_wheel(other, site, listed(other))
    members = contents("alpha", "1.0", FILES)
    for name, text in (("WHEEL", b"Wheel-Version: 2.0\n"), ("METADATA", b"Name: beta\n\n")):
        changed = write(tmp_path / "y", {**members, f"alpha-1.0.dist-info/{name}": text},
                        stem="alpha-1.0")  # fmt: skip
        with pytest.raises(InvalidRecordError, match="another"):
            unpack_wheel(changed, site, listed(changed))
    windows = wheel(tmp_path, "alpha", "1.0", FILES, tag="cp39-cp39-win_amd64")
    with pytest.raises(MachineMismatchError, match="another machine") as caught:
        unpack_wheel(windows, site, listed(windows))
    assert "cp311" in caught.value.expected
    assert caught.value.actual == "cp39-cp39-win_amd64"
    assert list(site.iterdir()) == []


def test_two_wheels_may_share_a_file_only_with_the_same_bytes(tmp_path, site):
    """WHEEL-6."""
    first = wheel(tmp_path, "alpha", "1.0", {"shared.py": "A = 1\n"})
    unpack_wheel(first, site, listed(first))
    for number, data in enumerate(("A = 2\n", "A = 1\n# more", "A", "")):
        other = wheel(tmp_path, "beta", f"{number}", {"shared.py": data})
        with pytest.raises(MachineMismatchError, match="different bytes"):
            unpack_wheel(other, site, listed(other, "beta", f"{number}"))
    folder = wheel(tmp_path, "gamma", "1", {"shared.py/x": "x"})
    with pytest.raises(MachineMismatchError, match="different bytes"):
        unpack_wheel(folder, site, listed(folder, "gamma", "1"))


def test_a_wheel_with_any_byte_flipped_is_refused_or_has_the_same_files(tmp_path):
    """WHEEL-5, WHEEL-6: even where somebody lists the flipped wheel's own digest."""
    file = wheel(tmp_path, "alpha", "1.0", FILES)
    sound = file.read_bytes()
    with TemporaryDirectory(dir=tmp_path) as site:
        unpack_wheel(file, Path(site), listed(file))
        files = {one.name: one.read_bytes() for one in Path(site).rglob("*") if one.is_file()}
    accepted = 0
    for at in range(len(sound)):
        data = bytearray(sound)
        data[at] ^= 1 << (at % 8)
        file.write_bytes(data)
        with TemporaryDirectory(dir=tmp_path) as site:
            try:
                unpack_wheel(file, Path(site), listed(file))
            except InvalidRecordError:
                continue
            found = {one.name: one.read_bytes() for one in Path(site).rglob("*") if one.is_file()}
        assert found == files, f"byte {at}"
        accepted += 1
    assert accepted < len(sound) // 3  # times, attributes and other fields that say nothing
