"""Real descriptions from the ICD-10-CM tabular list: on which side is the trouble?

A description such as "Fracture of lower end of right radius" says right, left, bilateral or
unspecified. `kind` = ``sides`` gives descriptions with their side: as many of each as there are at
most `per_side`, of one 3-character category at most `PER_CATEGORY`; with `only`, those of these
sides alone. `kind` = ``wordings`` gives both halves of `count` descriptions of any sort: text to
read first. Rows are chosen and ordered by the SHA-256 of their text. Standard library only.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

SIDES = ("bilateral", "left", "right", "unspecified")
PER_CATEGORY = 40

Row = dict[str, str]


def run(inputs: Mapping[str, Path], out: Path, params: Mapping[str, str | int]) -> None:
    """Write rows.jsonl to `out` from the one XML file in the input ``source``."""
    (file,) = inputs["source"].glob("*.xml")
    texts = sorted(set(descriptions(ET.parse(file).getroot())), key=place)
    if params["kind"] == "wordings":
        rows = wordings(texts, int(params["count"]))
    else:
        only = str(params.get("only", "")).split() or SIDES
        rows = (row for row in sided(texts, int(params["per_side"])) if row["side"] in only)
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    (out / "rows.jsonl").write_text("".join(lines), "utf-8")


def descriptions(root: ET.Element) -> Iterator[tuple[str, str]]:
    """(category, description) of every code that is not too long."""
    for diagnosis in root.iter("diag"):
        code, text = diagnosis.findtext("name", ""), diagnosis.findtext("desc", "")
        if 12 <= len(text) <= 60 and text.isascii():
            yield code[:3], text


def place(item: tuple[str, str]) -> bytes:
    """Where a description stands: its hash."""
    return sha256(item[1].encode()).digest()


def sided(texts: Iterable[tuple[str, str]], per_side: int) -> Iterator[Row]:
    """Descriptions that say one side."""
    taken: Counter[str] = Counter()
    for category, text in texts:
        said = [side for side in SIDES if re.search(rf"\b{side}\b", text.lower())]
        if len(said) == 1 and taken[said[0]] < per_side and taken[category] < PER_CATEGORY:
            taken.update((said[0], category))
            yield {"cat": category, "side": said[0], "text": text}


def wordings(texts: Iterable[tuple[str, str]], count: int) -> Iterator[Row]:
    """Both halves of any description, cut at a space."""
    seen: set[str] = set()
    for category, text in texts:
        words = text.split()
        head, tail = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
        if head and tail and head not in seen and len(seen) < count:
            seen.add(head)
            yield {"cat": category, "head": head, "tail": tail}
