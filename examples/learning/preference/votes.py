"""What people voted of single words: ten votes a word, from -4 (very bad) to 4 (very good).

The votes are those that the VADER lexicon keeps beside every word: a row is a word that more people
called good than bad, or the other way round, with `better` and `worse` as the majority has it and
by how many votes (`margin`). A word that stands there twice counts as it stands first. As many
words of each sort, at most `per_sort`, chosen and ordered by the SHA-256 of the word. `family` is
the word's beginning: words of one stem stand together. Standard library only.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

SORTS = ("good", "bad")
STEM = 5

Row = dict[str, str]


def run(inputs: Mapping[str, Path], out: Path, params: Mapping[str, str | int]) -> None:
    """Write rows.jsonl to `out` from the one lexicon in the input ``source``."""
    (file,) = inputs["source"].glob("*.txt")
    rows = sorted(judged(file.read_text("utf-8")), key=place)
    lines = [
        json.dumps(row, sort_keys=True) + "\n" for row in chosen(rows, int(params["per_sort"]))
    ]
    (out / "rows.jsonl").write_text("".join(lines), "utf-8")


def judged(lexicon: str) -> Iterator[Row]:
    """Every plain word on which there is a majority, once."""
    seen: set[str] = set()
    for line in lexicon.splitlines():
        word, _mean, _deviation, votes = line.split("\t")[:4]
        numbers = json.loads(votes)
        margin = sum(vote > 0 for vote in numbers) - sum(vote < 0 for vote in numbers)
        if margin and word not in seen and re.fullmatch("[a-z]{3,}", word):
            seen.add(word)
            better, worse = SORTS if margin > 0 else SORTS[::-1]
            yield {
                "better": better,
                "family": word[:STEM],
                "margin": str(abs(margin)),
                "text": word,
                "worse": worse,
            }


def place(row: Row) -> bytes:
    """Where a word stands: its hash."""
    return sha256(row["text"].encode()).digest()


def chosen(rows: list[Row], per_sort: int) -> Iterator[Row]:
    """At most `per_sort` words of each sort."""
    taken: Counter[str] = Counter()
    for row in rows:
        if taken[row["better"]] < per_sort:
            taken[row["better"]] += 1
            yield row
