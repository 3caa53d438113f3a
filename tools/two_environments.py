"""Two environments, one kolm: what was locked with either is rebuilt to its recorded bytes.

    python tools/two_environments.py
    python tools/two_environments.py --work build/two-environments

The older environment is made by pip from exact pins (tools/older_environment.txt) whose hashes are
taken down first (`--require-hashes`), and locked by `kolm lock --python`; then `kolm lock --check
--wheels` says whether the same wheels, installed nowhere, are the same environment. The other one
is that of the interpreter that runs this. examples/tiny is locked with each, built, and exported
with its environment; one new store, empty at first, imports both packs and rebuilds each artifact
without a network, in the environment that came with it. Needs Python 3.11 with kolm, and a package
index that pip knows. Exit status 1 unless both are rebuilt to their own ids.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "tools" / "older_environment.txt"
NAMES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
QUIET = ("-qq", "--disable-pip-version-check", "--no-input")


def run(*command: str | Path, cwd: Path | None = None, keep: bool = False) -> str:
    """Run a program, showing it; ends this one if it fails. Its output, where it is kept."""
    print(
        "$",
        " ".join(map(str, command)).replace(f"{sys.executable} -m kolm_build", "kolm"),
        flush=True,
    )
    done = subprocess.run(
        [str(one) for one in command], cwd=cwd, check=False, text=True,
        stdout=subprocess.PIPE if keep else None,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"exit status {done.returncode}")
    return done.stdout or ""


def kolm(*arguments: str | Path, keep: bool = False) -> str:
    """Run the one kolm that there is."""
    return run(sys.executable, "-m", "kolm_build", *arguments, keep=keep)


def hashed_pins(report: Path) -> str:
    """The distributions of pip's `report`, each with its version and the hash of its wheel."""
    lines = []
    for one in json.loads(report.read_text())["install"]:
        meta, archive = one["metadata"], one["download_info"]["archive_info"]
        lines.append(
            f"{meta['name']}=={meta['version']} --hash=sha256:{archive['hashes']['sha256']}"
        )
    return "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def older_python(work: Path) -> tuple[Path, Path]:
    """The interpreter of a new virtual environment with the older distributions, and their list."""
    run(sys.executable, "-m", "venv", work / "older-venv")
    python = work / "older-venv" / "bin" / "python"
    report, wheels = work / "report.json", work / "older-wheels.txt"
    pip = (python, "-m", "pip", "install", *QUIET)
    run(*pip, "--dry-run", "--ignore-installed", "--report", report, "-r", PINS)
    wheels.write_text(hashed_pins(report))
    run(*pip, "--require-hashes", "--no-deps", "--only-binary=:all:", "-r", wheels)
    return python, wheels


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was built in one environment.

    Attributes:
        name: Which one.
        project: Its folder.
        environment: Its digest.
        versions: What it has of `NAMES`.
        artifact: The artifact's id.
        weights: The weights id of its model.
        pack: The pack with all of it.
    """

    name: str
    project: Path
    environment: str
    versions: dict[str, str]
    artifact: str
    weights: str
    pack: Path


def artifact_of(file: Path) -> tuple[str, str]:
    """The id and the weights id of an artifact."""
    with zipfile.ZipFile(file) as archive:
        manifest = archive.read("manifest.json")
    return f"sha256:{sha256(manifest).hexdigest()}", json.loads(manifest)["weights_id"]


def built(name: str, work: Path, locking: tuple[str | Path, ...]) -> Built:
    """The tiny example, locked with one environment, built and packed."""
    project, store, pack = work / name, work / "store", work / f"{name}.kolmpack"
    shutil.copytree(ROOT / "examples" / "tiny", project, ignore=shutil.ignore_patterns("*.kolm"))
    place = ("-C", project, "--store", store)
    kolm("lock", *place, *locking)
    kolm("build", *place, "--record", "--no-sign")
    kolm("env", "add", *place)
    kolm("export", "--rebuildable", *place, "-o", pack)
    shown = json.loads(kolm("env", "show", *place, "--json", keep=True))
    versions = {one["name"]: one["version"] for one in shown["distributions"]}
    artifact, weights = artifact_of(project / "tiny.kolm")
    return Built(
        name=name,
        project=project,
        environment=shown["environment"],
        versions={one: versions[one] for one in NAMES},
        artifact=artifact,
        weights=weights,
        pack=pack,
    )


def rebuilt(one: Built, work: Path) -> str:
    """The id that the artifact has when it is rebuilt from its pack in the new store."""
    project, store = work / f"{one.name}-rebuilt", work / "new-store"
    kolm("import", one.pack, "--project", project, "--store", store)
    options = ("--offline", "--environment", "stored", "--against", store, "--json")
    said = kolm("rebuild", project / "tiny.kolm", *options, keep=True)
    return str(json.loads(said.splitlines()[-1])["targets"]["package"])


def told(found: list[tuple[Built, str]]) -> bool:
    """Print what came out; whether it is what it has to be."""
    for one, again in found:
        print(f"\n{one.name}: " + ", ".join(f"{name} {one.versions[name]}" for name in NAMES))
        print(f"  environment  {one.environment}")
        print(f"  weights id   {one.weights}")
        print(f"  artifact     {one.artifact}")
        print(f"  rebuilt      {again}  {'identical' if again == one.artifact else 'DIFFERENT'}")
    first, second = (one for one, _ in found)
    if first.environment == second.environment:
        print("\nthe two environments are one: nothing was shown")
        return False
    same = "the same" if first.weights == second.weights else "different"
    print(f"\ntwo environments, {same} weights")
    return all(again == one.artifact for one, again in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="a new folder to work in and keep")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = args.work.absolute() if args.work else Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        python, wheels = older_python(work)
        both = [built("older", work, ("--python", python)), built("pinned", work, ())]
        # The same wheels, installed nowhere, are the same environment: else this exits with 2.
        place = ("-C", both[0].project, "--store", work / "wheels-store")
        kolm("lock", "--check", *place, "--wheels", wheels)
        return 0 if told([(one, rebuilt(one, work)) for one in both]) else 1


if __name__ == "__main__":
    sys.exit(main())
