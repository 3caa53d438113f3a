"""Import a pack many times with a random byte flipped, cut off or appended: all must be refused.

    python tools/hostile_packs.py x.kolmpack            1,000 times, into an empty store
    python tools/hostile_packs.py x.kolmpack --count 50 --store DIR

The store is compared file by file and row by row after each. Exit status 1 if any import was taken,
ended otherwise than by a refusal, or changed the store.
"""

import argparse
import hashlib
import random
import sqlite3
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

from kolm_build.errors import KolmError, PackError
from kolm_build.store.local import LocalStore
from kolm_build.store.packfile import PackFile

QUERIES = ("select * from object", "select * from claim", "select * from root")
CHANGES = ("flip", "truncate", "append")


def spoilt(data: bytes, change: str, numbers: random.Random) -> bytes:
    """`data` with one thing wrong."""
    at = numbers.randrange(len(data))
    if change == "flip":
        flipped = data[at] ^ numbers.randrange(1, 256)
        return data[:at] + bytes((flipped,)) + data[at + 1 :]
    if change == "truncate":
        return data[:at]
    return data + numbers.randbytes(numbers.choice((1, 1, 41, 4096)))


def state(store: LocalStore) -> str:
    """A digest of everything in a store that is not the database's own business."""
    hasher = hashlib.sha256()
    for path in sorted(store.root.rglob("*")):
        if path.is_file() and not path.name.startswith("db.sqlite"):
            facts = path.stat()
            hasher.update(repr((str(path), facts.st_size, facts.st_mtime_ns)).encode())
    with closing(sqlite3.connect(f"file:{store.root}/db.sqlite?mode=ro", uri=True)) as index:
        for query in QUERIES:
            hasher.update(repr(index.execute(query).fetchall()).encode())
    return hasher.hexdigest()


def outcome(path: Path, store: LocalStore) -> str:
    """How an import of the pack in `path` ended."""
    try:
        with PackFile.open(path) as file:
            store.take_pack(file)
    except PackError as error:
        return error.code
    except KolmError as error:
        return f"WRONG CLASS {error.code}"
    return "TAKEN"


def attack(pack: Path, store: LocalStore, *, count: int, seed: int) -> Counter[tuple[str, str]]:
    """(change, outcome) of `count` imports."""
    data, numbers = pack.read_bytes(), random.Random(seed)
    store.put_blob(b"the store is open for writing")
    before = state(store)
    found: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(count):
            change = CHANGES[turn % len(CHANGES)]
            bad = Path(folder, "bad.kolmpack")
            bad.write_bytes(spoilt(data, change, numbers))
            ended = outcome(bad, store)
            found[change, ended if state(store) == before else f"STORE CHANGED {ended}"] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--store", type=Path, help="a store of one's own (default: a new one)")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalStore.open(args.store or Path(folder, "store")) as store,
    ):
        found = attack(args.pack, store, count=args.count, seed=args.seed)
    for (change, ended), number in sorted(found.items()):
        print(f"{number:5}  {change:9} {ended}")
    refused = sum(number for (_, ended), number in found.items() if ended.startswith("input.pack"))
    print(f"{refused} of {args.count} refused, the store unchanged")
    return 0 if refused == args.count else 1


if __name__ == "__main__":
    sys.exit(main())
