"""Build the conformance program every way and compare its hashes with the committed ones.

    python tools/conformance.py            every compiler, level and instruction set; every mutant
    python tools/conformance.py --quick    this machine's compiler alone
    python tools/conformance.py --write    write spec/vectors/numerics-conformance.txt anew

A build that cannot be made or run (no Clang, no cross compiler, no emulator, no AVX-512) is an
error, unless --allow-missing names it; then it is reported as not checked.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "spec" / "vectors" / "numerics-conformance.txt"
_X86 = ("avx512vnni", "avx512", "avx2vnni", "avx2", "baseline")
_ARM = ("neondot", "neon", "baseline")
ARM = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
ARM_EMULATOR = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")


class MissingError(Exception):
    """A tool or an instruction set that this machine does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One way to build the program, and the instruction sets to run it for."""

    name: str
    compiler: str
    level: str
    isas: tuple[str, ...]
    options: tuple[str, ...] = ()
    emulator: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    flags: str = ""


def _builds() -> list[Build]:
    x86, arm = _X86, _ARM
    builds = [
        Build(name=f"x86-64 {name} {level}", compiler=compiler, level=level, isas=x86)
        for name, compiler in (("GCC", "g++"), ("Clang", "clang++"))
        for level in ("-O1", "-O3")
    ]
    return builds + [
        Build(
            name=f"aarch64 {name} {level}",
            compiler=compiler,
            level=level,
            isas=arm,
            options=ARM,
            emulator=ARM_EMULATOR,
            flags=flags,
        )
        for name, compiler, flags in (
            ("GCC", "aarch64-linux-gnu-g++", ""),
            ("Clang", "clang++", "--target=aarch64-linux-gnu"),
        )
        for level in ("-O1", "-O3")
    ]


def _mutants() -> list[tuple[str, Build]]:
    def mutant(name: str, flag: str = "", *arguments: str) -> tuple[str, Build]:
        options = (f"-DKOLM_MUTANT={flag}",) if flag else ()
        build = Build(
            name=name,
            compiler="g++",
            level="-O3",
            isas=("avx2",),
            options=options,
            arguments=arguments,
        )
        return name, build

    return [
        mutant("contraction as GCC's default has it", "-ffp-contract=fast"),
        mutant("subnormal numbers flushed to zero", "", "--flush"),
        mutant("32 lanes in a sum", "-DKOLM_MUTANT_LANES=32"),
        mutant("chunks of 512 in a product", "-DKOLM_MUTANT_CHUNK=512"),
        mutant("one k loop reversed", "-DKOLM_MUTANT_REVERSED"),
    ]


def _need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            raise MissingError(f"{tool} is not installed")


def _compile(build: Build, folder: Path) -> Path:
    _need("cmake", "ninja", build.compiler, *build.emulator[:1])
    target = folder / build.name.replace(" ", "_")
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(target), "-G", "Ninja", "-DKOLM_TORCH=OFF",
        "-DKOLM_TESTING=OFF", "-DKOLM_CONFORMANCE=ON", f"-DCMAKE_CXX_COMPILER={build.compiler}",
        f"-DKOLM_LEVEL={build.level}", f"-DCMAKE_CXX_FLAGS={build.flags}",
        *build.options,
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(target), "--target", "conformance"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{build.name}: {' '.join(command)} failed\n{done.stdout}{done.stderr}")
    return target / "conformance"


def _run(build: Build, program: Path, *arguments: str) -> str:
    command = [*build.emulator, str(program), *build.arguments, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise MissingError(done.stderr.strip())
    if done.returncode != 0:
        sys.exit(f"{build.name}: {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def _different(expected: str, actual: str) -> list[str]:
    want = dict(line.split() for line in expected.splitlines())
    have = dict(line.split() for line in actual.splitlines())
    return sorted(name for name in want | have if want.get(name) != have.get(name))


def _check(build: Build, folder: Path, expected: str, missing: list[str]) -> int:
    """How many instruction sets of one build print other hashes."""
    wrong = 0
    try:
        program = _compile(build, folder)
    except MissingError as error:
        missing.append(f"{build.name}: {error}")
        return 0
    for isa in build.isas:
        try:
            names = _different(expected, _run(build, program, isa))
        except MissingError as error:
            missing.append(f"{build.name} {isa}: {error}")
            continue
        wrong += bool(names)
        verdict = f"{len(names)} differ: {', '.join(names[:6])}" if names else "equal"
        print(f"{build.name} {isa}: {verdict}", flush=True)
    return wrong


def _check_mutant(name: str, build: Build, folder: Path, expected: str) -> int:
    """1 if the hashes do not see the mutant."""
    seen = _different(expected, _run(build, _compile(build, folder), build.isas[0]))
    print(
        f"mutant, {name}: {f'caught by {len(seen)} hashes' if seen else 'NOT CAUGHT'}", flush=True
    )
    return 0 if seen else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="this machine's compiler alone")
    parser.add_argument("--write", action="store_true", help="write the vectors anew")
    parser.add_argument("--allow-missing", nargs="*", default=[], metavar="WORD",
                        help="parts of names of builds that may be missing")  # fmt: skip
    return parser.parse_args()


def _native() -> Build:
    isas = _X86 if platform.machine() == "x86_64" else _ARM
    return Build(name="native -O3", compiler=os.environ.get("CXX", "g++"), level="-O3", isas=isas)


def main() -> int:
    """Print a line for every build and mutant; 1 if any is wrong, 2 if any is missing."""
    options = _arguments()
    with tempfile.TemporaryDirectory(prefix="kolm-conformance-") as name:
        folder = Path(name)
        if options.write:
            VECTORS.write_text(_run(_native(), _compile(_native(), folder)))
            print(f"wrote {VECTORS.relative_to(ROOT)}")
        expected = VECTORS.read_text()
        print(f"{len(expected.splitlines())} hashes")
        missing: list[str] = []
        builds = [_native()] if options.quick else _builds()
        wrong = sum(_check(build, folder, expected, missing) for build in builds)
        if not options.quick:
            wrong += sum(_check_mutant(n, build, folder, expected) for n, build in _mutants())
    refused = [m for m in missing if not any(word in m for word in options.allow_missing)]
    for line in missing:
        print(f"not checked: {line}")
    return 1 if wrong else 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
