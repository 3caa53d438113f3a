"""Diagnosis texts of ten chapters of the ICD-10-CM tabular list, as many as there are.

A row is an inclusion term with the chapter it belongs to, no two with the same words; with `count`,
that many of them. Rows are ordered, and chosen, by the SHA-256 of their text, and their categories
fall on the sides of the split as those of examples/icd-triage do. Standard library only.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from pathlib import Path

CHAPTERS = {
    1: "infectious",
    2: "neoplasm",
    4: "endocrine",
    5: "mental",
    6: "nervous",
    9: "circulatory",
    11: "digestive",
    12: "skin",
    13: "musculoskeletal",
    14: "genitourinary",
}
CODE = re.compile(r"\b[A-Z][0-9][0-9A-Z]")

Row = dict[str, str]


def run(inputs: Mapping[str, Path], out: Path, params: Mapping[str, str | int]) -> None:
    """Write rows.jsonl to `out` from the one XML file in the input ``source``."""
    (file,) = inputs["source"].glob("*.xml")
    rows = distinct(sorted(terms(ET.parse(file).getroot()), key=place))
    count = int(params["count"]) if "count" in params else None
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) for row in islice(rows, count))
    (out / "rows.jsonl").write_text("".join(line + "\n" for line in lines), "utf-8")


def terms(root: ET.Element) -> Iterator[Row]:
    """Every inclusion term of the ten chapters that can stand alone."""
    for chapter in root.findall("chapter"):
        label = CHAPTERS.get(int(chapter.findtext("name", "0")))
        for diagnosis in chapter.iter("diag") if label else ():
            category = diagnosis.findtext("name", "")[:3]
            for note in diagnosis.findall("inclusionTerm/note"):
                text = " ".join((note.text or "").split())
                if 6 <= len(text) <= 90 and not CODE.search(text):
                    yield {"cat": category, "label": label, "text": text}


def distinct(rows: Iterable[Row]) -> Iterator[Row]:
    """Of the rows with the same words, the first."""
    seen: set[frozenset[str]] = set()
    for row in rows:
        words = frozenset(re.findall(r"\w+", row["text"].casefold()))
        if words not in seen:
            seen.add(words)
            yield row


def place(row: Row) -> tuple[bytes, str]:
    """Where a row stands; equal texts are told apart by their categories."""
    return sha256(row["text"].casefold().encode()).digest(), row["cat"]
