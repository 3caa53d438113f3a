"""Three questions about real descriptions from the ICD-10-CM tabular list, one against another.

Does a description name the right side, the left one, or say that the side is unspecified? `kind` =
``asked`` gives rows with the answers yes and no, of all three questions or of one `question` alone.
Each description is asked about twice, once where the answer is yes and once where it is no, so
neither the description nor the question tells the answer. `kind` = ``learnt`` gives what the base
learns before: which side, which chapter, and whether it is of a chapter. Rows are chosen and
ordered by the SHA-256 of their text, few of one category. Standard library only.
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
    "7": "eyes",
    "9": "circulation",
    "13": "skeleton",
    "15": "pregnancy",
    "19": "injury",
    "20": "cause",
}
PER_CATEGORY = 12
"""Descriptions of one category and side, or chapter."""

Row = dict[str, str]


@dataclass(frozen=True)
class Entry:
    """An entry of the table: its chapter, its category, its wording."""

    chapter: str
    category: str
    text: str


def run(inputs: Mapping[str, Path], out: Path, params: Mapping[str, str | int]) -> None:
    """Write rows.jsonl to `out` from the one XML file in the input ``source``."""
    (file,) = inputs["source"].glob("*.xml")
    found = sorted(entries(ET.parse(file).getroot()), key=lambda one: mark(one.text))
    kind, count = params["kind"], int(params["count"])
    rows = list(learnt(found, count) if kind == "learnt" else asked(found, count))
    if "question" in params:
        rows = [row for row in rows if row["question"] == params["question"]]
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
                name = diagnosis.findtext("name", "")
                yield Entry(chapter.findtext("name", ""), name[:3], text)


def mark(*texts: str) -> bytes:
    """Where a row stands: its hash."""
    return sha256("|".join(texts).encode()).digest()


def side(one: Entry) -> str:
    """The one side that the wording names."""
    said = [word for word in SIDES if re.search(rf"\b{word}\b", one.text.lower())]
    return said[0] if len(said) == 1 else ""


def chapter(one: Entry) -> str:
    """Its chapter, in a word."""
    return CHAPTERS.get(one.chapter, "")


QUESTIONS = {"chapter": chapter, "side": side}


def told(found: list[Entry], question: str, count: int) -> Iterator[tuple[Entry, str]]:
    """Entries with their answer to `question`: of each answer `count`, few of one category."""
    answers: Counter[str] = Counter()
    places: Counter[tuple[str, str]] = Counter()
    for one in found:
        answer = QUESTIONS[question](one)
        place = one.category, answer
        if answer and answers[answer] < count and places[place] < PER_CATEGORY:
            answers[answer] += 1
            places[place] += 1
            yield one, answer


def learnt(found: list[Entry], count: int) -> Iterator[Row]:
    """What the base learns: sides, chapters, and of a third of those each yes and no."""
    for one, answer in told(found, "side", count):
        yield row(one, "side", answer)
    for one, answer in told(found, "chapter", count):
        others = [word for word in CHAPTERS.values() if word != answer]
        kind, other = mark("learnt", one.text)[:2]
        yield (
            row(one, "chapter", answer),
            row(one, answer, "yes"),
            row(one, others[other % len(others)], "no"),
        )[kind % 3]


def asked(found: list[Entry], count: int) -> Iterator[Row]:
    """Of each description its own side, and by turns one of the two others."""
    turns: Counter[str] = Counter()
    for one, answer in told(found, "side", count):
        others = [word for word in SIDES if word != answer]
        yield row(one, answer, "yes")
        yield row(one, others[turns[answer] % 2], "no")
        turns[answer] += 1


def row(one: Entry, question: str, answer: str) -> Row:
    return {"answer": answer, "cat": one.category, "question": question, "text": one.text}
