"""Check that the help texts in README.md and docs/ are the program's own.

A block is written as::

    <!-- kolm build --help -->
    ```
    …
    ```

`--write` puts the program's present output in.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- kolm (?P<args>[^>]*?) -->\n```\n)(?P<text>.*?)(```\n)", re.DOTALL)


def output(arguments: str) -> str:
    """What `kolm` prints for `arguments`, 80 columns wide and without colour."""
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "kolm_build", *arguments.split()]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


def main() -> int:
    """Compare, or write with ``--write``; 1 if a block differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the program's output in")
    write = parser.parse_args().write
    stale = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        fresh = BLOCK.sub(lambda m: m[1] + output(m["args"]) + m[4], text)
        if fresh != text and write:
            page.write_text(fresh)
        elif fresh != text:
            print(f"{page.relative_to(ROOT)}: a help text is not the program's; run with --write")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
