"""Write the fixtures of the present formats to tests/compat/VERSION, once for each version.

What is written stays as it is for good: later versions must read, verify and rebuild it. The
tool refuses to touch a folder that exists.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RECIPE = """\
version = 1
name = "compat"

[environment]
distributions = ["blake3"]

[[step]]
name = "words"
step = "script"
inputs = {script = "path:./words.py", text = "path:./text.txt"}
params = {entry = "words.py"}

[[step]]
name = "longest"
step = "script"
inputs = {script = "path:./longest.py", words = "words"}
params = {entry = "longest.py", count = 3}
"""
WORDS = """\
def run(inputs, out, params):
    text = (inputs["text"] / "text.txt").read_text("utf-8")
    (out / "words.txt").write_text("\\n".join(sorted(set(text.split()))) + "\\n", "utf-8")
"""
LONGEST = """\
def run(inputs, out, params):
    words = (inputs["words"] / "words.txt").read_text("utf-8").split()
    chosen = sorted(words, key=lambda word: (-len(word), word))[: params["count"]]
    (out / "longest.txt").write_text("\\n".join(chosen) + "\\n", "utf-8")
"""
TEXT = "the same bytes on any machine and nothing silent and numbers a stranger can recompute\n"


def kolm(*arguments: str | Path) -> None:
    """Run `kolm`; a failure ends the tool."""
    command = [sys.executable, "-m", "kolm_build", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True)


def make_project(folder: Path) -> None:
    """A project of two scripts, locked, built and recorded, with its store."""
    files = {"kolm.toml": RECIPE, "words.py": WORDS, "longest.py": LONGEST, "text.txt": TEXT}
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    kolm("lock", "-C", folder, "--store", folder / "objects")
    kolm("build", "-C", folder, "--store", folder / "objects", "--record", "--no-sign")
    for lock in (folder / "objects" / "locks").iterdir():
        lock.unlink()


def make_artifact(folder: Path) -> None:
    """A signed artifact of some kilobytes, and the trust file that vouches for its signer."""
    from tests.artifact.making import make

    unsigned = make(folder / "parts")
    kolm("key", "new", folder / "key.pem", "--unencrypted")
    trust = ("--trust", folder / "trust.toml")
    kolm("key", "trust", folder / "key.pem.pub", "--name", "fixture", *trust)

    from kolm_build.attest.keys import load
    from kolm_build.attest.sign import sign_artifact

    sign_artifact(unsigned, folder / "artifact.kolm", key=load(folder / "key.pem", passphrase=None))
    shutil.rmtree(folder / "parts")
    for name in ("key.pem", "key.pem.pub"):
        (folder / name).unlink()
    kolm("verify", folder / "artifact.kolm", *trust)


def main() -> int:
    """Write tests/compat/<version>."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("version", metavar="VERSION", help="the new folder's name, such as v4")
    target = ROOT / "tests" / "compat" / parser.parse_args().version
    target.mkdir()
    # A store remembers where its locks are: not a path of the checkout.
    with TemporaryDirectory(prefix="kolm-compat-") as name:
        folder = Path(name)
        make_project(folder)
        make_artifact(folder)
        shutil.copytree(folder, target, symlinks=True, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
