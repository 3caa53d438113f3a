"""Check that every numbered MUST sentence of spec/ is named by a test.

A sentence is numbered like ``S-3`` at the start of its line or list item. A test names it in a
docstring, comment or string. Sentences that no test can check are listed in spec/unchecked.txt,
one a line, with the reason.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RULE = re.compile(r"^\W*([A-Z]+-\d+)\b", re.MULTILINE)


def rules() -> dict[str, str]:
    """Each rule's number and the page it stands on."""
    found: dict[str, str] = {}
    for page in sorted((ROOT / "spec").glob("*.md")):
        for number in RULE.findall(page.read_text()):
            if found.setdefault(number, page.name) != page.name:
                sys.exit(f"{number} stands in {found[number]} and in {page.name}")
    return found


def tested() -> set[str]:
    """Every number that a test names."""
    named: set[str] = set()
    for test in (ROOT / "tests").rglob("*.py"):
        named.update(re.findall(r"\b[A-Z]+-\d+\b", test.read_text()))
    return named


def excused() -> set[str]:
    """Every number that spec/unchecked.txt gives a reason for."""
    lines = (ROOT / "spec" / "unchecked.txt").read_text().splitlines()
    return {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}


def main() -> int:
    """Print what is missing; 1 if anything is."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    known, named, without = rules(), tested(), excused()
    missing = sorted(set(known) - named - without)
    for number in missing:
        print(f"spec/{known[number]}: {number} is named by no test")
    for number in sorted(without - set(known)):
        print(f"spec/unchecked.txt: {number} is no rule")
    print(f"{len(known)} rules, {len(set(known) & named)} named by tests, {len(without)} excused")
    return 1 if missing or without - set(known) else 0


if __name__ == "__main__":
    sys.exit(main())
