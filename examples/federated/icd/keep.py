"""A site's own rows: those of its chapters. Standard library only."""

import json
from collections.abc import Mapping
from pathlib import Path


def run(inputs: Mapping[str, Path], out: Path, params: Mapping[str, str | int]) -> None:
    """Write rows.jsonl with the rows of the input ``every`` that have one of these labels."""
    labels = str(params["labels"]).split()
    lines = (inputs["every"] / "rows.jsonl").read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["label"] in labels]
    (out / "rows.jsonl").write_text("".join(kept), "utf-8")
