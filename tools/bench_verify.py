"""Compare `kolm verify` with one `hashlib.sha256` pass over the same file (docs/performance.md).

    python tools/bench_verify.py [--artifact FILE.kolm] [--mib 320] [--rounds 5]

Without an artifact, one with that much of random weights is packaged by the package step and
signed. The whole process of `kolm verify --trust`, interpreter start included, is set against the
bare pass inside a running interpreter; the two take turns and each figure is the best round.
The bound of the specification is 1.2 times the pass plus 0.2 s.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from multiprocessing import Process
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kolm_build.attest.keys import create, load  # noqa: E402
from kolm_build.attest.sign import sign_artifact  # noqa: E402
from tools.bench_noop import ENVIRONMENT  # noqa: E402

FACTOR, PLUS_S = 1.2, 0.2


def package(folder: Path, mib: int) -> None:
    """Make an artifact with `mib` MiB of random weights, by the package step."""
    from tests.artifact import making

    def grow(inputs: dict[str, dict[str, bytes]]) -> None:
        rows = (mib << 20) // (2 * making.HIDDEN)
        making.VOCABULARY = rows
        making.TENSORS = (("model.embed_tokens.weight", "BF16", (rows, making.HIDDEN)), *rest)
        weights = making.weights()
        inputs["model"]["model.safetensors"] = weights
        for role in ("evaluation", "base"):
            results = making.results_of(inputs[role])
            inputs[role] = making.evaluation(results, len(weights))

    rest = making.TENSORS[1:]
    making.make(folder, grow)


def signed(source: Path, folder: Path) -> tuple[Path, Path]:
    """The artifact at `source` signed by a new key, and a trust file for that key."""
    key_file, trust, dest = folder / "key.pem", folder / "trust.toml", folder / "signed.kolm"
    public = create(key_file, passphrase=None, unencrypted=True)
    sign_artifact(source, dest, key=load(key_file, passphrase=None))
    trust.write_text(
        "version = 1\n[threshold]\nbuilder = 1\n[[principal]]\n"
        f'name = "bench"\nroles = ["builder"]\nkeys = ["{public}"]\n'
    )
    return dest, trust


def hash_once(path: Path) -> float:
    """Seconds of one pass of SHA-256."""
    start = time.perf_counter()
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    return time.perf_counter() - start


def verify_once(path: Path, trust: Path) -> tuple[float, int]:
    """Seconds of a whole process of `kolm verify`, and its most memory in KiB."""
    command = [sys.executable, "-m", "kolm_build", "verify", str(path), "--trust", str(trust)]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"kolm verify ended with {process.returncode}")
    return seconds, usage.ru_maxrss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, help="an artifact to verify")
    parser.add_argument("--mib", type=int, default=320, help="size of the one that is made")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        source = args.artifact or folder / "made" / "package" / "tiny.kolm"
        if args.artifact is None:  # in a process of its own: a child's peak counts its parent's
            maker = Process(target=package, args=(folder / "made", args.mib))
            maker.start()
            maker.join()
        path, trust = signed(source, folder)
        passes, runs = [], []
        for _ in range(args.rounds):
            passes.append(hash_once(path))
            runs.append(verify_once(path, trust))
        size = path.stat().st_size
    plain, whole = min(passes), min(seconds for seconds, _ in runs)
    bound = FACTOR * plain + PLUS_S
    print(f"file          {size / 1e6:8.1f} MB")
    print(f"sha256 pass   {plain:8.3f} s   {size / plain / 1e9:.2f} GB/s")
    print(f"kolm verify   {whole:8.3f} s   {max(rss for _, rss in runs) / 1024:.0f} MiB at most")
    print(f"bound         {bound:8.3f} s   {FACTOR} x pass + {PLUS_S} s")
    print("within the bound" if whole < bound else "OVER THE BOUND")
    return 0 if whole < bound else 1


if __name__ == "__main__":
    sys.exit(main())
