"""A small storm; tools/storm.py without arguments is the whole one."""

import subprocess
import sys
from pathlib import Path

STORM = Path(__file__).resolve().parents[2] / "tools" / "storm.py"


def test_kills_and_collectors_lose_nothing(place: Path) -> None:
    """STORE-4, STORE-8, STORE-21: kill -9 at random moments; gc beside two builders."""
    sizes = ["--kills", "20", "--traced", "0", "--cuts", "0", "--builders", "2", "--units", "8"]
    command = [sys.executable, "-B", str(STORM), *sizes, "--place", str(place)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(ended.stdout.splitlines()) == 3, ended.stdout
