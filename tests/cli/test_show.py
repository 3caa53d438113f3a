"""What `kolm show` tells people."""

from tests.artifact.making import make
from tests.cli.command import kolm


def test_an_artifact_is_shown_with_one_line_for_each_deep_folder(tmp_path):
    artifact = make(tmp_path / "artifact")
    told = kolm("show", str(artifact))
    assert told.status == 0
    lines = [line.split(":")[0].strip() for line in told.out.splitlines()]
    assert "eval/results.jsonl" in lines
    assert "build/derivations/" in lines
    assert not [line for line in lines if line.startswith("build/derivations/") and "cbor" in line]
