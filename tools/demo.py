"""`make demo`: the example model is built, verified, asked and rebuilt, with every command shown.

The lock is the committed one where it fits this machine's interpreter and distributions; else a
new one is made below build/demo, and the demo says so.
"""

import argparse
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = "icd-triage"
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


def lock(name: str, place: Path) -> Path:
    """The lock to build from."""
    committed = Path("lockfiles") / f"{name}.lock"
    where = ("-C", Path("examples") / name, "--store", STORE)
    if kolm("lock", "--check", *where, "--lock", committed, may_fail=True) == 0:
        return committed
    fresh = place / "kolm.lock"
    print(
        f"\nThe committed lock does not fit here, for the reason above. {fresh} will.", flush=True
    )
    shutil.copyfile(ROOT / committed, ROOT / fresh)
    kolm("lock", *where, "--lock", fresh, "--update", "environment", "--update", "code")
    return fresh


def make_key(place: Path) -> tuple[Path, Path]:
    """A key and a trust file of the demo's own."""
    key, trust = place / "key.pem", place / "trust.toml"
    if not (ROOT / key).exists():
        kolm("key", "new", key, "--unencrypted")
        kolm("key", "trust", f"{key}.pub", "--name", "demo", "--trust", trust)
    return key, trust


def report(artifact: Path) -> None:
    """The figures, counted from the artifact's rows by nothing but the standard library."""
    with zipfile.ZipFile(ROOT / artifact) as archive:
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "name", nargs="?", default=EXAMPLE, help=f"a locked example (default: {EXAMPLE})"
    )
    name = parser.parse_args().name
    place = Path("build") / "demo" / name
    (ROOT / place).mkdir(parents=True, exist_ok=True)
    key, trust = make_key(place)
    locked, artifact = lock(name, place), place / f"{name}.kolm"
    build = ("build", "-C", Path("examples") / name, "--lock", locked, "--store", STORE)
    kolm(*build, "-o", artifact, "--key", key)
    report(artifact)
    kolm("verify", artifact, "--trust", trust)
    kolm("run", artifact, *question(name))
    kolm("rebuild", artifact, "--against", STORE)
    return 0


def question(name: str) -> tuple[str, ...]:
    """What the model is asked."""
    if name != EXAMPLE:
        return ("Ada reports a dry cough",)
    prompt = "Diagnosis: Chronic obstructive pyelonephritis\nICD-10-CM chapter (one word)?"
    return ("--system", "You are a medical coding assistant.", prompt)


if __name__ == "__main__":
    sys.exit(main())
