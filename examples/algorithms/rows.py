"""Real descriptions from the ICD-10-CM tabular list: on which side is the trouble?

A description such as "Fracture of lower end of right radius" says right, left, bilateral or
unspecified. What a row holds depends on `kind`: `answers`, `pairs` (the side, and a side that is
not said), `feedback` (a side, and whether it is the one), `praised` (the side, with a weight),
`prompts` (with the side as the reference), `reasons` (the side, and the words that say it), `steps`
(two steps of a solution, each right or wrong) or `wordings` (the first and the second half of any
description). Rows are chosen and ordered by the SHA-256 of their text.
Standard library only.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

SIDES = ("bilateral", "left", "right", "unspecified")
PER_CATEGORY = 8
PER_SIDE = 40
WORDINGS = 1200

Row = dict[str, object]


def run(inputs: Mapping[str, Path], out: Path, params: Mapping[str, str | int]) -> None:
    """Write rows.jsonl to `out` from the one XML file in the input ``source``."""
    (file,) = inputs["source"].glob("*.xml")
    texts = sorted(set(descriptions(ET.parse(file).getroot())), key=mark)
    kind = str(params.get("kind", "answers"))
    rows = wordings(texts) if kind == "wordings" else map(KINDS[kind], sided(texts))
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    (out / "rows.jsonl").write_text("".join(lines), "utf-8")


def descriptions(root: ET.Element) -> Iterator[tuple[str, str]]:
    """(category, description) of every code that is not too long."""
    for diagnosis in root.iter("diag"):
        code, text = diagnosis.findtext("name", ""), diagnosis.findtext("desc", "")
        if 12 <= len(text) <= 60 and text.isascii():
            yield code[:3], text


def mark(item: tuple[str, str]) -> bytes:
    """Where a description stands: its hash."""
    return sha256(item[1].encode()).digest()


def sided(texts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """(category, description, side): as many of each side, few of one category."""
    sides: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    for category, text in texts:
        said = [side for side in SIDES if re.search(rf"\b{side}\b", text.lower())]
        if len(said) == 1 and sides[said[0]] < PER_SIDE and categories[category] < PER_CATEGORY:
            sides[said[0]] += 1
            categories[category] += 1
            yield category, text, said[0]


def wordings(texts: Iterable[tuple[str, str]]) -> Iterator[Row]:
    """Both halves of any description, cut at a space."""
    seen: set[str] = set()
    for category, text in texts:
        words = text.split()
        head, tail = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
        if head and tail and head not in seen and len(seen) < WORDINGS:
            seen.add(head)
            yield {"cat": category, "head": head, "tail": tail}


def other(text: str, side: str) -> str:
    """A side that the description does not say."""
    others = [one for one in SIDES if one != side]
    return others[mark(("", text))[0] % len(others)]


def answers(row: tuple[str, str, str]) -> Row:
    """The side."""
    category, text, side = row
    return {"cat": category, "side": side, "text": text}


def pairs(row: tuple[str, str, str]) -> Row:
    """The side, another one, and how clear the case is."""
    margin = "2" if row[2] == "unspecified" else "4"
    return answers(row) | {"margin": margin, "other": other(row[1], row[2])}


def feedback(row: tuple[str, str, str]) -> Row:
    """In every second row the wrong side."""
    good = mark(("", row[1]))[1] % 2 == 0
    return answers(row) | {"good": good, "said": row[2] if good else other(row[1], row[2])}


def praised(row: tuple[str, str, str]) -> Row:
    """The side, said to be right; a row of an unspecified side counts half."""
    weight = "0.5" if row[2] == "unspecified" else "1"
    return answers(row) | {"good": True, "said": row[2], "weight": weight}


def steps(row: tuple[str, str, str]) -> Row:
    """Two steps: what is looked for, and what is found, which is wrong in every second row."""
    judged = feedback(row)
    found = ["Look for a side.", f"It says {judged['said']}."]
    return answers(row) | {"steps": found, "labels": [True, judged["good"]]}


def reasons(row: tuple[str, str, str]) -> Row:
    """The side, and where the description says it."""
    found = re.search(rf"\b{row[2]}\b\S*(?: \w+)?", row[1], re.IGNORECASE)
    assert found is not None, "the side is said"
    return answers(row) | {"why": f"It says: {found[0]}."}


KINDS = {
    "answers": answers,
    "feedback": feedback,
    "pairs": pairs,
    "praised": praised,
    "prompts": answers,
    "reasons": reasons,
    "steps": steps,
}
