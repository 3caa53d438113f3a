"""Write spec/vectors/*.json, or check with --check that they are what the code makes.

A vector file is one topic: `tools/vectors/<topic>.py` has `vectors()`, which gives its value.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "tools" / "vectors"
VECTORS = ROOT / "spec" / "vectors"


def made() -> dict[str, str]:
    """The text of every vector file, by topic."""
    sys.path.insert(0, str(ROOT))
    topics = sorted(part.stem for part in PARTS.glob("[a-z]*.py"))
    modules = {topic: importlib.import_module(f"tools.vectors.{topic}") for topic in topics}
    return {topic: json.dumps(one.vectors(), indent=1) + "\n" for topic, one in modules.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if any differs")
    check = parser.parse_args().check
    stale = 0
    for topic, text in made().items():
        file = VECTORS / f"{topic}.json"
        if file.exists() and file.read_text() == text:
            continue
        stale += 1
        if check:
            print(f"spec/vectors/{topic}.json is not what the code makes")
        else:
            file.write_text(text)
            print(f"spec/vectors/{topic}.json written")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
