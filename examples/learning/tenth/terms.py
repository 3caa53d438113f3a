"""Texts of ten chapters of the ICD-10-CM tabular list, to be read by a teacher and its students.

A row is an inclusion term or a code's own description. `per_chapter` rows of each chapter, at most
`per_category` of one 3-character category, chosen by the SHA-256 of their text. Standard library
only.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
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
    found = texts(ET.parse(file).getroot())
    rows = chosen(found, int(params["per_chapter"]), int(params["per_category"]))
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    (out / "rows.jsonl").write_text("".join(lines), "utf-8")


def texts(root: ET.Element) -> Iterator[Row]:
    """Every description and inclusion term of the ten chapters that can stand alone."""
    for chapter in root.findall("chapter"):
        label = CHAPTERS.get(int(chapter.findtext("name", "0")))
        for diagnosis in chapter.iter("diag") if label else ():
            category = diagnosis.findtext("name", "")[:3]
            for note in (*diagnosis.findall("desc"), *diagnosis.findall("inclusionTerm/note")):
                text = " ".join((note.text or "").split())
                if 6 <= len(text) <= 90 and not CODE.search(text):
                    yield {"cat": category, "label": label or "", "text": text}


def chosen(rows: Iterable[Row], per_chapter: int, per_category: int) -> Iterator[Row]:
    """Rows of each chapter, no two with the same words."""
    words: set[frozenset[str]] = set()
    taken: Counter[str] = Counter()
    for row in sorted(rows, key=place):
        key = frozenset(re.findall(r"\w+", row["text"].casefold()))
        full = taken[row["label"]] == per_chapter or taken[row["cat"]] == per_category
        if not full and key not in words:
            yield row
            words.add(key)
            taken.update((row["label"], row["cat"]))


def place(row: Row) -> tuple[bytes, str]:
    """Where a row comes in the order; equal texts are told apart by their categories."""
    return sha256(row["text"].casefold().encode()).digest(), row["cat"]
