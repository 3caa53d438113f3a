"""`kolm verify` at the door."""

from pathlib import Path

from kolm_build import reading
from tests.cli.command import kolm
from tests.cli.test_startup import signed_artifact


def test_the_file_that_is_checked_is_the_one_whose_grade_is_asked(tmp_path, monkeypatch):
    """VER-4: it is opened once, so nobody can put another in its place meanwhile."""
    signed, trust = signed_artifact(tmp_path)
    opened: list[Path] = []

    def note(path, refusal):
        opened.append(path)
        return reading.open_regular(path, refusal)

    monkeypatch.setattr("kolm_build.attest.container.open_regular", note)
    assert kolm("verify", str(signed), "--trust", str(trust)).status == 0
    assert opened == [signed]


def test_what_is_no_artifact_is_named_with_what_to_do(tmp_path):
    other = tmp_path / "kolm.toml"
    other.write_text("version = 1\n" * 100)
    for command in (("verify", "--no-trust", str(other)), ("run", str(other), "hello")):
        told = kolm(*command)
        assert told.status == 64
        assert told.err.startswith(f"error: {other}: ")
        assert "It is no artifact, or was damaged or cut off on its way" in told.err
