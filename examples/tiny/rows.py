"""A toy task that a tiny model learns in seconds: a complaint names the ward it belongs to.

128 rows over four wards, made from word lists in a fixed order. Standard library only.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

WARDS = {
    "bone": ("a broken wrist", "a sprained ankle", "a stiff knee", "a sore hip"),
    "lung": ("a dry cough", "short breath", "a wheezing chest", "thick phlegm"),
    "mind": ("low mood", "poor sleep", "a panic attack", "racing thoughts"),
    "skin": ("an itchy rash", "a dark mole", "hives on both arms", "a burnt palm"),
}
PEOPLE = ("Ada", "Bo", "Cleo", "Dirk", "Elif", "Femi", "Goran", "Hana")


def run(_inputs: Mapping[str, Path], out: Path, _params: Mapping[str, str | int]) -> None:
    """Write rows.jsonl to `out`."""
    rows = [
        {"text": f"{person} reports {complaint}", "ward": ward}
        for ward, complaints in WARDS.items()
        for complaint in complaints
        for person in PEOPLE
    ]
    rows.sort(key=lambda row: sha256(row["text"].encode()).digest())
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    (out / "rows.jsonl").write_text(lines, "utf-8")
