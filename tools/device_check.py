"""Checks the numerics classes on a machine with an NVIDIA GPU, in independent parts.

    bash tools/device_check.sh OUT          everything
    python3 tools/device_check.py hashes --device cpu --file F     one part
    python3 tools/device_check.py record    write the hashes that every machine must give

A part that fails, crashes or takes too long does not stop the next one, and is never a pass.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.device_libraries import BUILT, ROOT
from tools.device_parts import PARTS
from tools.device_run import EXPECTED, run_all


def record() -> int:
    """Write the hashes that this machine's CPU gives."""
    found = {}
    for name in ("hashes", "models"):
        file = BUILT / f"{name}.json"
        command = [sys.executable, __file__, name, "--device", "cpu", "--file", str(file)]
        subprocess.run(command, check=True, cwd=ROOT)
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    EXPECTED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=["all", "record", *PARTS])
    parser.add_argument("--out", type=Path, help="folder of all results")
    parser.add_argument("--device", choices=["cpu", "cuda", "emulated"], default="cuda")
    parser.add_argument("--file", type=Path, help="the part's result, JSON")
    options = parser.parse_args()
    if options.part == "all":
        if options.out is None:
            parser.error("all needs --out")
        options.out.mkdir(parents=True, exist_ok=True)
        return run_all(options.out.resolve())
    if options.part == "record":
        return record()
    if options.file is None:
        parser.error("a part needs --file")
    value = PARTS[options.part](options.device)
    options.file.write_text(json.dumps(value), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
