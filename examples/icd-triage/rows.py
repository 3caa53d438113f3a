"""Real diagnosis texts from the ICD-10-CM tabular list, each with the chapter it belongs to.

A row is an inclusion term: a wording that coders meet in practice, such as "Chronic catarrhal
gastritis". Ten chapters, the same number of rows each (`per_chapter`, 100 unless the recipe says
otherwise), at most `PER_CATEGORY` of one 3-character category. Rows are chosen by the SHA-256 of
their text, so there is no seed and no order to trust. Standard library only.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

PER_CHAPTER = 100
PER_CATEGORY = 5

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
    per_chapter = int(params.get("per_chapter", PER_CHAPTER))
    rows = chosen(terms(ET.parse(file).getroot()), per_chapter)
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    (out / "rows.jsonl").write_text("".join(lines), "utf-8")


def terms(root: ET.Element) -> Iterator[Row]:
    """Every inclusion term of the ten chapters that can stand alone."""
    for chapter in root.findall("chapter"):
        label = CHAPTERS.get(int(chapter.findtext("name", "0")))
        for diagnosis in chapter.iter("diag") if label else ():
            code = diagnosis.findtext("name", "")
            for note in diagnosis.findall("inclusionTerm/note"):
                text = " ".join((note.text or "").split())
                if 6 <= len(text) <= 90 and not CODE.search(text):
                    yield {"cat": code[:3], "code": code, "label": label, "text": text}


def chosen(rows: Iterable[Row], per_chapter: int = PER_CHAPTER) -> list[Row]:
    """`per_chapter` rows of each chapter, no two with the same words."""
    taken: list[Row] = []
    words: set[frozenset[str]] = set()
    chapters: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    for row in sorted(rows, key=place):
        key = frozenset(re.findall(r"\w+", row["text"].casefold()))
        full = chapters[row["label"]] == per_chapter or categories[row["cat"]] == PER_CATEGORY
        if full or key in words:
            continue
        taken.append(row)
        words.add(key)
        chapters[row["label"]] += 1
        categories[row["cat"]] += 1
    return taken


def place(row: Row) -> tuple[bytes, str]:
    """Where a row comes in the order; equal texts are told apart by their codes."""
    return sha256(row["text"].casefold().encode()).digest(), row["code"]
