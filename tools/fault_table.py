"""What becomes of a build when its substituter fails: every substituter, every fault, one table.

    python tools/fault_table.py [--write docs/substituter-faults.md]

A build of two nodes is offered by one substituter whose server fails, or by that one and then by a
sound one. Each cell is one build: what happened to the wanted node, `copied` or `built`, after the
bytes were compared with those of a build without substituters and the store was checked. A cell
that is not as it should be ends the program with status 1. Servers are the real ones (nginx, a
registry, an S3 server), with a server in between that does the failing; those that are not
installed are left out, and the table says so.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402  # the checkout's own code comes first

from kolm_build.core.derivation import OutputInput  # noqa: E402
from kolm_build.core.digest import Digest  # noqa: E402
from kolm_build.engine.scheduler import realise  # noqa: E402
from kolm_build.store.local import LocalStore  # noqa: E402
from kolm_build.store.remote.address import open_place  # noqa: E402
from kolm_build.store.remote.bucket import BucketPlace  # noqa: E402
from kolm_build.store.remote.folder import FolderPlace  # noqa: E402
from kolm_build.store.remote.place import Place  # noqa: E402
from tests.engine.test_scheduler import out  # noqa: E402
from tests.substituter.copying import (  # noqa: E402
    QUICK,
    publish,
    publish_claims,
    signing_key,
    trusting,
)
from tests.substituter.places import BUCKET, bucket_server, opened  # noqa: E402
from tests.substituter.serving import Faults, between  # noqa: E402
from tests.substituter.test_faults import NODES, A, B, ClosedBuilder, build  # noqa: E402

KEY = signing_key()
TRUST = trusting(builder=KEY)
LARGE_BYTES = 1 << 20
"""What is as large is struck: the one large blob of each node."""

FAULTS = {
    "none": ("none", "."),
    "another byte (lie)": ("lie", "."),
    "longer than said": ("lengthen", "."),
    "no end": ("unending", "."),
    "half, said to be all": ("shorten", "."),
    "half of what is said (truncated)": ("truncate", "."),
    "the line drops every 1.5 MiB": ("drop", "."),
    "a byte now and then (slow)": ("slow", "."),
    "no answer (hang)": ("hang", "."),
    "an answer that stops": ("hang_inside", "."),
    "status 500": ("error", "."),
    "status 503": ("busy", "."),
    "status 403": ("forbidden", "."),
    "rolled back: no claims any more": ("absent", "real"),
    "the bytes are gone": ("absent", "."),
    "another range": ("wrong_range", "."),
    "ranges ignored": ("no_range", "."),
    "said to be compressed": ("zipped", "."),
    "no HTTP": ("garbage", "."),
    "connection closed": ("reset", "."),
    "redirected for ever": ("elsewhere", "."),
    "a log-in page": ("page", "."),
}
HARMLESS = {"none", "drop", "no_range"}
EDITS: Mapping[str, Callable[[Path, bytes], object]] = {
    "none": lambda *_: None,
    "lie": lambda path, data: path.write_bytes(data[:-1] + bytes([data[-1] ^ 1])),
    "lengthen": lambda path, data: path.write_bytes(data + b"more"),
    "shorten": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "absent": lambda path, _: path.unlink(),
}
"""What can be done to a folder."""


@dataclass(frozen=True, slots=True)
class Stand:
    """A place that holds the build, and a sound one.

    Attributes:
        kind: Which kind of place.
        folder: Where things lie.
        reader: The place.
        sound: A sound one of another kind.
        contents: What the build gives.
    """

    kind: str
    folder: Path
    reader: Place
    sound: Place
    contents: Mapping[OutputInput, Digest]

    def failing(self, fault: str, where: str) -> AbstractContextManager[Place | None]:
        """The place, failing; None where a place of this kind cannot."""
        if self.kind == "folder":
            return folder_reader(self.folder / "cache", self.folder, fault, where)
        address = self.reader.url
        if isinstance(self.reader, BucketPlace):
            server = self.reader._web.base.netloc  # noqa: SLF001  # the address shown has no endpoint
            address = f"{address}?endpoint=http://{server}"
        return web_reader(address, fault, where)

    def outcomes(self, fault: str, where: str) -> tuple[str, str]:
        """What becomes of the build: alone, and with the sound one after it."""
        cells = []
        for others in ((), (self.sound,)):
            with self.failing(fault, where) as bad:
                if bad is None:
                    return "cannot happen", "cannot happen"
                cells.append(outcome(self.folder, self.contents, bad, *others))
        return cells[0], cells[1]


@contextmanager
def folder_reader(cache: Path, place: Path, kind: str, where: str) -> Iterator[Place | None]:
    """A folder in which every file that `where` names was edited."""
    if kind not in EDITS:
        yield None
        return
    with TemporaryDirectory(dir=place) as copy:
        edited = Path(shutil.copytree(cache, Path(copy) / "cache"))
        for path in sorted(edited.rglob("*")):
            name = str(path.relative_to(edited))
            is_struck = name.startswith("cas/") if where == "." else name.startswith(where)
            if path.is_file() and is_struck:
                EDITS[kind](path, path.read_bytes())
        yield FolderPlace(str(edited))


@contextmanager
def web_reader(address: str, kind: str, where: str) -> Iterator[Place | None]:
    """The place at `address` behind a server that fails."""
    parts = urlsplit(address)
    query = dict(part.split("=", 1) for part in parts.query.split("&") if part)
    server = urlsplit(query.get("endpoint", address)).netloc
    with between(
        server, Faults(kind, where, least_bytes=LARGE_BYTES if where == "." else 0)
    ) as url:
        host = urlsplit(url).netloc
        reader = open_place(address.replace(server, host), limits=QUICK, bucket=BUCKET)
        yield reader
        reader.close()


def filled(store: LocalStore, place: Place) -> Mapping[OutputInput, Digest]:
    """Build, and publish; the contents."""
    with TemporaryDirectory() as folder:
        builder = ClosedBuilder(store, Path(folder))
        made = realise(
            [out(B)], derivations=NODES, store=store, builder=builder, on_event=lambda _: None
        )
    publish(store, place, *(made.contents[out(node)] for node in (A, B)))
    for node in (A, B):
        publish_claims(store, place, made.keys[node.digest], key=KEY)
    return made.contents


def outcome(place: Path, contents: Mapping[OutputInput, Digest], *places: Place) -> str:
    """What became of the wanted node in a fresh store."""
    with TemporaryDirectory(dir=place) as folder:
        with LocalStore.open(Path(folder) / "store") as store:
            found, built, _, troubles = build(store, Path(folder), *places, trust=TRUST)
            same = found[out(B)] == contents[out(B)]
            clean = store.fsck(deep=True).is_clean
        if not (same and clean):
            return "WRONG BYTES" if not same else "STORE NOT SOUND"
        told = f" ({troubles[0].reason})" if troubles and len(places) == 1 else ""
        return ("built" if "bb" in built else "copied") + told


def run_kind(kind: str, place: Path, ports: list[int]) -> dict[str, tuple[str, str]] | str:
    """For each fault what became of it, alone and with a sound one after it; or why not."""
    rows: dict[str, tuple[str, str]] = {}
    (place / "sound").mkdir()
    try:
        with (
            opened(kind, place, lambda: ports[0]) as (writer, reader),
            LocalStore.open(place / "built") as store,
        ):
            contents = filled(store, writer)
            sound = FolderPlace(str(place / "sound" / "cache"))
            filled(store, sound)
            stand = Stand(kind, place, reader, sound, contents)
            for name, (fault, where) in FAULTS.items():
                rows[name] = stand.outcomes(fault, where)
                print(f"{kind:<8}{name:<36}{' / '.join(rows[name])}", flush=True)
    except pytest.skip.Exception as skipped:
        return str(skipped)
    return rows


def is_right(fault: str, cells: tuple[str, str]) -> bool:
    """Whether a row is as it should be."""
    if cells[0] == "cannot happen":
        return True
    alone = "copied" if fault in HARMLESS else ("copied", "built")
    return cells[0].startswith(alone) and cells[1] == "copied"


def table(results: dict[str, dict[str, tuple[str, str]] | str]) -> str:
    """The table in Markdown."""
    kinds = {kind: rows for kind, rows in results.items() if not isinstance(rows, str)}
    lines = [
        "# Substituters that fail",
        "",
        "Made by `python tools/fault_table.py --write docs/substituter-faults.md`. Each cell is",
        "two builds: with the failing substituter alone, and with a sound one after it. `copied`:",
        "the node came from a substituter; `built`: it was built. In every case the bytes were",
        "those of a build without substituters, and the store was sound. In brackets: what was",
        "told of the failing one. A fault strikes the large blobs; claims, inventories, packs and",
        "`format` are struck, one kind at a time, by `tests/substituter/test_faults.py`.",
        "",
        "| fault | " + " | ".join(kinds) + " |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for name in FAULTS:
        cells = [" / ".join(dict.fromkeys(rows[name])) for rows in kinds.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [""] + [f"Left out: {rows}" for rows in results.values() if isinstance(rows, str)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Every substituter, every fault, one table.")
    parser.add_argument("--write", type=Path, help="where the table goes, in Markdown")
    args = parser.parse_args()
    results: dict[str, dict[str, tuple[str, str]] | str] = {}
    with TemporaryDirectory() as folder:
        for kind in ("folder", "http", "nginx", "oci"):
            place = Path(folder, kind)
            place.mkdir()
            results[kind] = run_kind(kind, place, [])
        place = Path(folder, "s3")
        place.mkdir()
        Path(folder, "server").mkdir()
        try:
            with bucket_server(Path(folder, "server")) as port:
                results["s3"] = run_kind("s3", place, [port])
        except pytest.skip.Exception as skipped:
            results["s3"] = str(skipped)
    text = table(results)
    if args.write:
        args.write.write_text(text)
    print(text)
    rows = [rows for rows in results.values() if not isinstance(rows, str)]
    wrong = [
        (name, cells)
        for one in rows
        for name, cells in one.items()
        if not is_right(FAULTS[name][0], cells)
    ]
    for name, cells in wrong:
        print(f"not as it should be: {name}: {cells}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
