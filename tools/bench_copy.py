"""Compare `kolm copy` with curl and b3sum, nix and dvc, in one run (docs/performance.md).

    python tools/bench_copy.py [--place FOLDER] [--rounds 5] [--mib 1024] [--dvc PATH | --no-dvc]

One file of random bytes and a tree of 10,000 small files, each published to a folder and fetched
from it through nginx on the loopback into a fresh, empty store. Whole processes, taking turns. kolm
checks every byte and returns when the disk has everything; the others do not wait, so "on the disk"
adds, for them, a sync of the file system right after. A ratio is the other's time divided by kolm's
in the same round, the median of the rounds: above 1 kolm is faster.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.bench_store import ENVIRONMENT, FILES, ROOT, install_dvc, make_large, make_small, run

DURABLY = ", on the disk"
WIDTH = 44
NGINX = """
daemon off;
worker_processes 1;
pid {place}/pid;
error_log {place}/error.log;
{user}
events {{ worker_connections 64; }}
http {{
  access_log off;
  sendfile on;
  keepalive_requests 100000;
  client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;
  fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
  server {{ listen 127.0.0.1:{port}; root {place}/web; }}
}}
"""
INGEST = """
import sys
from pathlib import Path
from kolm_build.store.local import LocalStore
with LocalStore.open(Path(sys.argv[1])) as store:
    tree = store.ingest(Path(sys.argv[2]))
    store.add_root("bench", trees=[tree])
    print(tree)
"""


@dataclass
class Way:
    """One way to do it.

    Attributes:
        name: What it is called.
        do: Does it, given a fresh folder.
        prepare: What comes before it and is not measured.
        is_durable: Whether it waits for the disk by itself.
        seconds: How long it took, by what was measured.
    """

    name: str
    do: Callable[[Path], None]
    prepare: Callable[[Path], None] = lambda _: None
    is_durable: bool = False
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, place: Path, what: str) -> None:
        """One round."""
        at = place / "round"
        at.mkdir()
        self.prepare(at)
        os.sync()
        start = time.perf_counter()
        self.do(at)
        self.seconds.setdefault(what, []).append(time.perf_counter() - start)
        if not self.is_durable:
            run(["sync", "--file-system", at])
        self.seconds.setdefault(what + DURABLY, []).append(time.perf_counter() - start)
        shutil.rmtree(at)


@contextmanager
def served(place: Path) -> Iterator[str]:
    """Nginx in front of `place`/web."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        sys.exit("nginx is not installed (Debian: apt install nginx-light)")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    (place / "web").mkdir()
    config = place / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(NGINX.format(place=place, port=port, user=user))
    process = subprocess.Popen([program, "-c", str(config), "-e", str(place / "error.log")])
    try:
        for _ in range(100):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def kolm(*args: str | Path) -> None:
    """The command line of this checkout."""
    run([sys.executable, "-m", "kolm_build", *args], PYTHONPATH=str(ROOT))


def ingested(store: Path, source: Path) -> str:
    """The digest of `source` in a store."""
    return subprocess.run(
        [sys.executable, "-c", INGEST, store, source],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip


def kolm_ways(place: Path, url: str, source: Path) -> tuple[Way, Way]:
    """To publish, and to fetch."""
    store, name = place / f"store-{source.name}", f"kolm-{source.name}"
    tree = ingested(store, source)
    kolm("copy", "--store", store, "--to", f"file://{place}/web/{name}", tree)

    def put(at: Path) -> None:
        kolm("copy", "--store", store, "--to", f"file://{at}/c", tree)

    def get(at: Path) -> None:
        kolm("copy", "--store", at / "s", "--from", f"{url}/{name}", tree)

    return (
        Way("kolm copy --to", put, is_durable=True),
        Way("kolm copy --from", get, is_durable=True),
    )


def plain_ways(place: Path, url: str, source: Path) -> tuple[Way, Way]:
    """What copies and hashes a file with next to nothing around it."""
    shutil.copy(source, place / "web" / source.name)

    def put(at: Path) -> None:
        run(["cp", "--reflink=never", source, at / "copy"])
        run(["b3sum", at / "copy"])

    def get(at: Path) -> None:
        run(["curl", "-sS", "-o", at / "copy", f"{url}/{source.name}"])
        run(["b3sum", at / "copy"])

    return Way("cp, b3sum", put), Way("curl, b3sum", get)


def nix_ways(place: Path, url: str, source: Path) -> tuple[list[Way], list[Way]]:
    """Nix copy without compression, and nix-store's streams."""
    conf = place / "nix-conf"
    conf.mkdir(exist_ok=True)
    (conf / "nix.conf").write_text(
        "sandbox = false\nsubstituters =\nbuild-users-group =\n"
        "experimental-features = nix-command\n"
    )

    def environment(at: Path) -> dict[str, str]:
        return {
            "NIX_CONF_DIR": str(conf), "NIX_REMOTE": "", "HOME": str(place),
            "NIX_STORE_DIR": "/nix/store", "NIX_STATE_DIR": str(at / "state"),
            "NIX_LOG_DIR": str(at / "log"),
        }  # fmt: skip

    def local(at: Path) -> str:
        return f"local?root={at}/root"

    home = place / f"nix-{source.name}"
    home.mkdir()
    path = subprocess.run(
        ["nix", "store", "add-path", "--store", local(home), str(source)],
        env=ENVIRONMENT | environment(home), capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    name = f"nix-cache-{source.name}"

    def to(at: Path, folder: Path) -> None:
        cache = f"file://{folder}?compression=none"
        run(["nix", "copy", "--store", local(home), "--to", cache, path], **environment(at))

    to(home, place / "web" / name)

    def get(at: Path) -> None:
        run(["nix", "copy", "--store", local(at), "--from", f"{url}/{name}", "--to", local(at),
             "--no-check-sigs", path], **environment(at))  # fmt: skip

    stream = place / f"{source.name}.nix-export"

    def export(target: Path) -> None:
        with target.open("wb") as file:
            subprocess.run(
                ["nix-store", "--store", local(home), "--export", path],
                env=ENVIRONMENT | environment(home), stdout=file, check=True,
            )  # fmt: skip

    def take(at: Path) -> None:
        with stream.open("rb") as file:
            subprocess.run(
                ["nix-store", "--store", local(at), "--import"], stdin=file,
                env=ENVIRONMENT | environment(at), check=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    export(stream)
    return (
        [Way("nix copy --to file:", lambda at: to(at, at / "c")),
         Way("nix-store --export", lambda at: export(at / "export"))],
        [Way("nix copy --from http:", get), Way("nix-store --import", take)],
    )  # fmt: skip


def dvc_ways(place: Path, url: str, program: str, source: Path) -> tuple[Way, Way]:
    """Dvc push to a folder, dvc pull over HTTP."""
    name = f"dvc-{source.name}"
    home = place / name
    home.mkdir()

    def dvc(at: Path, *args: str | Path) -> None:
        run([program, "--cd", at, *args])

    run(["git", "-C", home, "init", "-q"])
    dvc(home, "init", "-q")
    dvc(home, "config", "core.analytics", "false")
    dvc(home, "config", "cache.type", "copy")
    dvc(home, "add", "-q", "--out", source.name, source)
    dvc(home, "remote", "add", "-d", "web", f"{url}/{name}")
    dvc(home, "remote", "add", "folder", place / "web" / name)
    dvc(home, "push", "-q", "-r", "folder")

    def clone(at: Path) -> None:
        shutil.copytree(
            home, at / "dvc", ignore=shutil.ignore_patterns("cache", source.name, "tmp")
        )

    def push(_: Path) -> None:
        dvc(home, "push", "-q", "-r", "fresh")

    def fresh(at: Path) -> None:
        dvc(home, "remote", "add", "-f", "fresh", at / "remote")

    return (
        Way("dvc push (folder)", push, prepare=fresh),
        Way("dvc pull (http)", lambda at: dvc(at / "dvc", "pull", "-q"), prepare=clone),
    )


def report(what: str, ways: list[Way]) -> None:
    """A table: seconds, and the median of the ratios to the first."""
    mine = ways[0]
    print(f"{what:<{WIDTH}}{'best, s':>10}{'median, s':>11}{'ratio':>8}")
    for end in ("", DURABLY):
        for way in ways:
            if way is mine and end:
                continue
            took = way.seconds[what + end]
            base = mine.seconds[what + end]
            ratio = median(one / other for one, other in zip(took, base, strict=True))
            shown = f"{ratio:.2f}" if way is not mine else ""
            print(
                f"  {way.name + end:<{WIDTH - 2}}{min(took):>10.2f}{median(took):>11.2f}{shown:>8}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare kolm copy with curl, nix and dvc.")
    parser.add_argument("--place", type=Path, default=None, help="where to work")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--dvc", help="the dvc program; installed on demand")
    parser.add_argument("--no-dvc", action="store_true")
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.place) as folder:
        place = Path(folder)
        place.chmod(0o755)
        program = None if args.no_dvc else args.dvc or install_dvc(place)
        sources = {
            f"{args.mib} MiB": make_large(place / "large", args.mib),
            f"{FILES} files": make_small(place / "small"),
        }
        time.sleep(2.1)  # files at rest: the stat cache keeps no younger ones
        with served(place) as url:
            for what, source in sources.items():
                put, get = map(list, zip(kolm_ways(place, url, source), strict=True))
                if source.is_file():
                    for ways, way in zip((put, get), plain_ways(place, url, source), strict=True):
                        ways.append(way)
                if shutil.which("nix"):
                    for ways, more in zip((put, get), nix_ways(place, url, source), strict=True):
                        ways.extend(more)
                else:
                    print("nix is not installed (Debian: apt install nix-bin): left out")
                if program is not None:
                    pair = dvc_ways(place, url, program, source)
                    for ways, way in zip((put, get), pair, strict=True):
                        ways.append(way)
                for verb, ways in (("publish", put), ("fetch", get)):
                    for _ in range(args.rounds):
                        for way in ways:
                            way.measure(place, f"{verb} {what}")
                    report(f"{verb} {what}", ways)
    return 0


if __name__ == "__main__":
    sys.exit(main())
