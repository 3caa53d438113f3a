"""Three questions about real descriptions from the ICD-10-CM tabular list.

`side`: is it the left one, the right one, or is it not specified? `chapter`: which of eight
chapters is it of? `billable`: is it a code that a claim may name, or a heading of finer codes?
Sides stand in the wording; chapters and headings are the table's own. A row names its question
before the description, and one description may be asked about more than once. With `kind` =
`descriptions` a row is any description, to be read. Rows are chosen and ordered by the SHA-256 of
their text, few of one category. Standard library only.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

SIDES = ("left", "right", "unspecified")
CHAPTERS = {
    "1": "germs",
    "2": "tumour",
    "7": "eye",
    "9": "heart",
    "13": "bones",
    "15": "birth",
    "19": "injury",
    "20": "cause",
}
MOST = {"side": 462, "chapter": 173, "billable": 693}
"""Rows of each answer of a question: 1,386 rows a question at most."""
PER_CATEGORY = 6
"""Rows of one category and answer."""


@dataclass(frozen=True)
class Entry:
    """An entry of the table: its chapter, category, wording, and whether finer ones follow."""

    chapter: str
    category: str
    text: str
    is_heading: bool


def run(inputs: Mapping[str, Path], out: Path, params: Mapping[str, str | int]) -> None:
    """Write rows.jsonl to `out` from the one XML file in the input ``source``."""
    (file,) = inputs["source"].glob("*.xml")
    found = sorted(entries(ET.parse(file).getroot()), key=lambda one: mark(one.text))
    if params.get("kind") == "descriptions":
        chosen = found[: int(params["count"])]
        rows = [{"cat": one.category, "text": one.text} for one in chosen]
    else:
        rows = [row for question in MOST for row in asked(question, found)]
        rows.sort(key=lambda row: mark(row["question"], row["text"]))
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    (out / "rows.jsonl").write_text("".join(lines), "utf-8")


def entries(root: ET.Element) -> Iterator[Entry]:
    """Each wording that is neither short nor long, once."""
    seen = set()
    for chapter in root.findall("chapter"):
        for diagnosis in chapter.iter("diag"):
            text = diagnosis.findtext("desc", "")
            if 12 <= len(text) <= 60 and text.isascii() and text not in seen:
                seen.add(text)
                yield Entry(
                    chapter.findtext("name", ""),
                    diagnosis.findtext("name", "")[:3],
                    text,
                    diagnosis.find("diag") is not None,
                )


def mark(*texts: str) -> bytes:
    """Where a row stands: its hash."""
    return sha256("|".join(texts).encode()).digest()


def asked(question: str, found: list[Entry]) -> Iterator[dict[str, str]]:
    """The rows of a question: as many of each answer, few of one category."""
    answers: Counter[str] = Counter()
    categories: Counter[tuple[str, str]] = Counter()
    for one in found:
        answer = ANSWERS[question](one)
        place = one.category, answer
        if answer and answers[answer] < MOST[question] and categories[place] < PER_CATEGORY:
            answers[answer] += 1
            categories[place] += 1
            yield {
                "answer": answer,
                "cat": one.category,
                "question": question,
                "text": one.text,
            }


def side(one: Entry) -> str:
    """The one side that the wording names."""
    said = [word for word in SIDES if re.search(rf"\b{word}\b", one.text.lower())]
    return said[0] if len(said) == 1 else ""


def chapter(one: Entry) -> str:
    """Its chapter, in a word."""
    return CHAPTERS.get(one.chapter, "")


def billable(one: Entry) -> str:
    """Whether a claim may name it."""
    return "no" if one.is_heading else "yes"


ANSWERS = {"billable": billable, "chapter": chapter, "side": side}
