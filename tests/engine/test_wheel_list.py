"""Lists of wheels: everything pinned, with a digest, or refused with file and line."""

import pytest

from kolm_build.engine.wheel_list import read_wheel_list
from kolm_build.errors import InvalidRecordError, MachineMismatchError, UnsupportedVersionError
from tests.engine.wheels import line, pylock, wheel

HASH = "--hash=sha256:" + "0" * 64


@pytest.fixture
def read(tmp_path):
    def read(text: str, name: str = "requirements.txt"):
        (tmp_path / name).write_text(text)
        return read_wheel_list(tmp_path / name)

    return read


@pytest.fixture
def alpha(tmp_path):
    return wheel(tmp_path, "alpha", "1.0", {"alpha.py": "A = 1\n"})


def test_both_forms_say_the_same(read, alpha):
    """WHEEL-1."""
    (one,) = read(line(alpha))
    (two,) = read(pylock(alpha), "pylock.toml")
    assert (one.name, one.version, one.digests) == (two.name, two.version, two.digests)
    assert (one.name, one.version) == ("alpha", "1.0")
    assert (one.where, two.where) == ("line 1", "line 4: packages[0]")


def test_what_tools_write_around_the_pins_is_read(read):
    """WHEEL-1: comments, continued lines, hashes, extras, markers, names in any spelling."""
    text = (
        "# made by a tool\n--require-hashes\n--only-binary :all:\n\n"
        f"Beta_Lib[more]==2.0 \\\n    {HASH} \\\n    --hash=sha256:{'1' * 64}\n    # via alpha\n"
        f'alpha==1.0 ; python_version >= "3" {HASH}\nnever==1 ; python_version < "3" {HASH}\n'
    )
    alpha, beta = read(text)
    assert (alpha.name, alpha.where) == ("alpha", "line 9")
    assert (beta.name, beta.version, beta.where) == ("beta-lib", "2.0", "line 5")
    assert len(beta.digests) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"alpha {HASH}", "not pinned"),
        (f"alpha>=1.0 {HASH}", "not pinned"),
        (f"alpha==1.* {HASH}", "not pinned"),
        (f"alpha==1.0,!=1.1 {HASH}", "not pinned"),
        (f"alpha @ https://example.org/alpha-1.0-py3-none-any.whl {HASH}", "not pinned"),
        ("alpha==1.0", "no SHA-256"),
        ("alpha==1.0 --hash=md5:00", "no SHA-256"),
        ("alpha==1.0 --hash=sha256:00", "no SHA-256"),
        ("-e ./alpha", "editable"),
        ("--editable=./alpha", "editable"),
        ("./alpha-1.0.tar.gz", "not a pinned distribution"),
        ("-r more.txt", "has no place"),
        ("--index-url https://example.org/simple", "has no place"),
    ],
)
def test_a_line_that_is_not_a_pinned_wheel_is_refused_by_its_number(read, tmp_path, text, reason):
    """WHEEL-2."""
    with pytest.raises(InvalidRecordError, match=reason) as refused:
        read(f"# a comment\nfirst==1.0 {HASH}\n{text}\n")
    error = refused.value
    assert (error.file, error.where) == (str(tmp_path / "requirements.txt"), "line 3")
    assert error.expected
    assert error.actual
    assert error.advice


def test_a_distribution_stands_there_once(read):
    """WHEEL-2."""
    with pytest.raises(InvalidRecordError, match="listed twice") as refused:
        read(f"Alpha==1.0 {HASH}\nalpha==2.0 {HASH}\n")
    assert (refused.value.where, refused.value.actual) == ("line 2", "line 1")
    with pytest.raises(InvalidRecordError, match="no wheel is listed"):
        read("# nothing\n")
    with pytest.raises(InvalidRecordError, match="nothing follows"):
        read(f"alpha==1.0 {HASH} \\")


def test_a_pylock_of_something_else_than_wheels_is_refused(read, alpha):
    """WHEEL-2."""
    hashes = f'hashes = {{sha256 = "{"0" * 64}"}}'
    kinds = {
        "sdist": f'sdist = {{url = "https://x.org/beta-1.tar.gz", {hashes}}}',
        "directory": 'directory = {path = "a"}',
        "editable": 'directory = {path = "a", editable = true}',
        "vcs": 'vcs = {type = "git", url = "https://x.org/a", commit-id = "0a"}',
        "archive": f'archive = {{url = "https://x.org/a.zip", {hashes}}}',
    }
    for kind, source in kinds.items():
        text = pylock(alpha) + f'\n[[packages]]\nname = "beta"\nversion = "1"\n{source}\n'
        with pytest.raises(InvalidRecordError, match=kind) as refused:
            read(text, "pylock.toml")
        assert refused.value.where == "line 9: packages[1]"
        assert "derivation of its own" in refused.value.advice


def test_a_pylock_without_a_sha256_or_of_another_form_is_refused(read, alpha):
    """WHEEL-2."""
    text = pylock(alpha)
    with pytest.raises(InvalidRecordError, match="without a SHA-256") as refused:
        read(text.replace("sha256", "md5"), "pylock.toml")
    assert refused.value.where == "line 4: packages[0].wheels[0]"
    with pytest.raises(InvalidRecordError, match="not a pylock"):
        read(text.replace("created-by", "made-by"), "pylock.toml")
    with pytest.raises(InvalidRecordError, match="not TOML"):
        read(text + "[", "pylock.toml")
    with pytest.raises(InvalidRecordError, match="no version"):
        read(text.replace('version = "1.0"\nwheels', "wheels"), "pylock.toml")
    with pytest.raises(UnsupportedVersionError):
        read(text.replace('lock-version = "1.0"', 'lock-version = "2.0"'), "pylock.toml")


def test_a_list_for_another_machine_or_python_says_what_is_missing_here(read, tmp_path, alpha):
    """WHEEL-3."""
    other = wheel(tmp_path, "beta", "1.0", {}, tag="cp39-cp39-win_amd64")
    with pytest.raises(MachineMismatchError, match="another machine") as refused:
        read(pylock(alpha, other), "pylock.toml")
    assert refused.value.where == "line 9: packages[1]"
    assert "cp311" in refused.value.expected
    assert "beta" in refused.value.actual
    newer = pylock(alpha).replace("created-by", 'requires-python = ">=3.99"\ncreated-by')
    with pytest.raises(MachineMismatchError, match="another machine or Python"):
        read(newer, "pylock.toml")
