"""`make demo`: the example model is built, verified, asked and rebuilt, with every command shown.

The lock is the committed one where it fits this machine's interpreter and distributions; else a
new one is made below build/demo, and the demo says so.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = sys.argv[1] if len(sys.argv) > 1 else "icd-triage"
PROJECT = Path("examples") / NAME
PLACE = Path("build") / "demo" / NAME
LOCK = Path("lockfiles") / f"{NAME}.lock"
ARTIFACT = PLACE / f"{NAME}.kolm"
KEY, TRUST = PLACE / "key.pem", PLACE / "trust.toml"
STORE = Path("store")


def kolm(*arguments: str | Path, may_fail: bool = False) -> int:
    """Run `kolm`, showing the command as a person would type it; ends the demo if it fails."""
    shown = " ".join(f"'{a}'" if " " in str(a) else str(a) for a in arguments)
    print(f"\n$ kolm {shown}", flush=True)
    command = [sys.executable, "-m", "kolm_build", *map(str, arguments)]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status and not may_fail:
        sys.exit(status)
    return status


def lock() -> Path:
    """The lock to build from."""
    where = ("-C", PROJECT, "--store", STORE)
    if kolm("lock", "--check", *where, "--lock", LOCK, may_fail=True) == 0:
        return LOCK
    fresh = PLACE / "kolm.lock"
    print(
        f"\nThe committed lock does not fit here, for the reason above. {fresh} will.", flush=True
    )
    shutil.copyfile(ROOT / LOCK, ROOT / fresh)
    kolm("lock", *where, "--lock", fresh, "--update", "environment", "--update", "code")
    return fresh


def make_key() -> None:
    """A key and a trust file of the demo's own."""
    if not (ROOT / KEY).exists():
        kolm("key", "new", KEY, "--unencrypted")
        kolm("key", "trust", f"{KEY}.pub", "--name", "demo", "--trust", TRUST)


def report() -> None:
    """The figures, read from the artifact by nothing but the standard library."""
    with zipfile.ZipFile(ROOT / ARTIFACT) as archive:
        base = json.loads(archive.read("eval/base-summary.json"))
        tuned = json.loads(archive.read("eval/summary.json"))
    print(f"\nheld-out rows            {tuned['rows']}")
    for name, key in (("one of the labels", "label_correct"), ("exact greedy answer", "correct")):
        if tuned[key] is not None:
            print(f"{name:24} {share(base, key)} before, {share(tuned, key)} after")


def share(summary: dict[str, int], key: str) -> str:
    """`key` of a summary as a percentage of its rows."""
    return f"{Decimal(100 * summary[key]) / summary['rows']:.1f} %"


def main() -> int:
    """The demo."""
    (ROOT / PLACE).mkdir(parents=True, exist_ok=True)
    make_key()
    locked = lock()
    build = ("build", "-C", PROJECT, "--lock", locked, "--store", STORE)
    kolm(*build, "-o", ARTIFACT, "--key", KEY)
    report()
    kolm("verify", ARTIFACT, "--trust", TRUST)
    kolm("run", ARTIFACT, *question())
    kolm("rebuild", ARTIFACT, "--against", STORE)
    return 0


def question() -> tuple[str, ...]:
    """What the model is asked."""
    if NAME != "icd-triage":
        return ("Ada reports a dry cough",)
    prompt = "Diagnosis: Chronic obstructive pyelonephritis\nICD-10-CM chapter (one word)?"
    return ("--system", "You are a medical coding assistant.", prompt)


if __name__ == "__main__":
    sys.exit(main())
