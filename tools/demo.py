"""`make demo`: the example model is built, verified, asked and rebuilt, with every command shown.

The lock is the committed one where it fits this machine's interpreter and distributions; else a
new one is made below build/demo, and the demo says so.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
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
    """The figures, counted from the artifact's rows by nothing but the standard library."""
    with zipfile.ZipFile(ROOT / ARTIFACT) as archive:
        gate = json.loads(archive.read("eval/gate.json"))
        before, after = (rows(archive, name) for name in ("base-results", "results"))
    print(f"\non {len(after)} held-out rows     before  after")
    print(f"most likely label     {share(before, is_label)}  {share(after, is_label)}")
    print(f"free answer, exact    {share(before, is_exact)}  {share(after, is_exact)}")
    needed = f"k at least {gate['k_min']}, accuracy at least {gate['accuracy_min']}"
    print(f"gate                  {'passed' if gate['passed'] else 'failed'}: {needed}")


def rows(archive: zipfile.ZipFile, name: str) -> list[dict[str, object]]:
    """The results of one evaluation."""
    return [json.loads(line) for line in archive.read(f"eval/{name}.jsonl").splitlines()]


def is_label(row: dict[str, object]) -> bool:
    """Whether the likeliest of the labels is the answer."""
    return row["label_output"] == row["answer"]


def is_exact(row: dict[str, object]) -> bool:
    """Whether the model said the answer and nothing else."""
    return str(row["output"]).strip() == row["answer"]


def share(found: list[dict[str, object]], holds: Callable[[dict[str, object]], bool]) -> str:
    """The percentage of rows for which `holds`."""
    return f"{Decimal(100 * sum(map(holds, found))) / len(found):5.1f}%"


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
