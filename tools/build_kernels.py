"""Compile the portable kernels: in place for `make kernels`, into a wheel as hatchling's hook.

An editable install is a plain path and compiles nothing; `make kernels` puts the library where the
package looks for it. A wheel brings the library along.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "kolm_build/numerics/libkolm_portable.so"
DECODER = "kolm_build/numerics/libkolm_decoder.so"
VECTORS = "spec/vectors/numerics-conformance.txt"

# The kernels' flags are theirs alone (csrc/flags.cmake): a flag of the environment or of an older
# configuration could change bits, and the digest of the sources would not tell. Nor does a
# compiler's search path (CPATH, COMPILER_PATH) pass; which compiler it is may be said.
_NO_FLAGS = ("-DCMAKE_CXX_FLAGS=", "-DCMAKE_SHARED_LINKER_FLAGS=", "-DCMAKE_EXE_LINKER_FLAGS=")
_VARIABLES = frozenset({"PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "CXX"})


def build(root: Path) -> Path:
    """The library compiled from the sources below `root`, in its place there."""
    folder = root / "build"
    ninja, compiler = _program("ninja"), which("c++") or which("g++") or which("clang++")
    if compiler is None:
        sys.exit("A C++ compiler is needed. Debian: apt install g++")
    cmake = [_program("cmake"), "-S", str(root), "-B", str(folder), "-G", "Ninja"]
    defines = [f"-DKOLM_TORCH_DIR={_torch()}", f"-DCMAKE_MAKE_PROGRAM={ninja}", *_NO_FLAGS]
    _run([*cmake, *defines])
    _run([cmake[0], "--build", str(folder)])
    _check(folder / "conformance", root / VECTORS)
    for name in (LIBRARY, DECODER):  # what runs has mapped the old file: it is not written over
        (root / name).unlink(missing_ok=True)
    _run([cmake[0], "--install", str(folder), "--prefix", str(root), "--strip"])
    return root / LIBRARY


def _program(name: str) -> str:
    """The program `name` of this Python's own environment, or else of the machine."""
    places = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    found = which(name, path=places)
    if found is None:
        sys.exit(f"The program {name} is needed: pip install {name}")
    return found


def _torch() -> str:
    """The folder of the installed torch, which is not imported."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The kernels are compiled against torch, which is not installed.")
    return spec.submodule_search_locations[0]


def _check(program: Path, vectors: Path) -> None:
    """Refuse kernels that do not print the committed hashes: a compiler may be wrong, too."""
    if _run([str(program)]) != vectors.read_bytes():
        sys.exit(
            f"The kernels do not compute what {vectors.name} says: nothing is installed.\n"
            f"Another compiler may help; `diff <({program}) {vectors}` shows where they differ."
        )


def _run(command: list[str]) -> bytes:
    environment = {name: value for name, value in os.environ.items() if name in _VARIABLES}
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        sys.stderr.buffer.write(done.stdout)
        sys.exit(f"{Path(command[0]).name} ended with status {done.returncode}")
    return done.stdout


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]  # the configuration is not ours
    """Puts the libraries into a wheel, and makes it a wheel of one platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it packs; `version` is ``standard`` or ``editable``."""
        if version == "editable":
            return
        build(Path(self.root))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"] += [LIBRARY, DECODER]


def main() -> None:
    """Compile them where they lie."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    print(build(Path(__file__).resolve().parent.parent))


if __name__ == "__main__":
    main()
