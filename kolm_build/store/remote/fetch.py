"""A tree from a place into a store: what is missing of it, several objects at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock

from kolm_build.core.digest import Digest
from kolm_build.errors import CorruptObjectError, InvalidRecordError, MissingObjectError
from kolm_build.store import pack
from kolm_build.store.inventory import Inventory, is_small
from kolm_build.store.remote.layout import (
    MAX_PACK_BYTES,
    MAX_RECORD_BYTES,
    blob_path,
    pack_path,
    tree_path,
)
from kolm_build.store.remote.many import at_once
from kolm_build.store.remote.place import Limits, Place
from kolm_build.store.remote.pour import FileSink, MemorySink, pour, read
from kolm_build.store.take import Fetched, Taker

OnBytes = Callable[[int, int], None]
"""Told how many bytes of how many have come."""

TRIES = 2
"""How often a wrong object is fetched."""
_WHOLE_BYTES = 1 << 20
"""Smaller blobs are fetched into memory."""
_BATCH_BYTES = 64 << 20
_BATCH_COUNT = 2048


def fetch_inventory(place: Place, tree: Digest, limits: Limits) -> Inventory | None:
    """A tree's inventory, checked; None where there is none.

    Raises:
        NetworkError: The place failed.
        CorruptObjectError: What it gave is not the inventory.
    """
    path = tree_path(tree)

    def ask() -> Inventory | None:
        data = read(place, path, most=MAX_RECORD_BYTES, limits=limits)
        if data is None:
            return None
        try:
            return Inventory.decode(data, tree)
        except InvalidRecordError as error:
            raise CorruptObjectError(
                f"not the inventory of the tree: {error.reason}",
                file=f"{place.url}/{path}",
                expected=error.expected or str(tree),
                actual=error.actual,
            ) from error

    return twice(ask)


def twice(ask: Callable[[], Inventory | None]) -> Inventory | None:
    """What `ask` gives, asked once more where the first was wrong."""
    try:
        return ask()
    except CorruptObjectError:
        return ask()


class Fetch:
    """One tree on its way from a place into a store.

    Args:
        place: Where from.
        taker: Brings it in.
        limits: How patient to be.
        jobs: Objects at once.
        on_bytes: Told how far it is.
    """

    def __init__(
        self, place: Place, taker: Taker, *, limits: Limits, jobs: int, on_bytes: OnBytes
    ) -> None:
        self._place = place
        self._taker = taker
        self._limits = limits
        self._jobs = jobs
        self._on_bytes = on_bytes
        self._lock = Lock()
        self._done = self._total = 0

    def tree(self, inventory: Inventory) -> int:
        """Bring in what is missing; how many bytes came.

        Raises:
            NetworkError: The place failed.
            CorruptObjectError: It gave something else.
            MissingObjectError: It lacks an object that the inventory names.
        """
        leaves = inventory.leaves()
        wanted = self._taker.missing(leaves)
        small = {b3 for b3 in wanted if is_small(leaves[b3])}
        packs = inventory.packs if small else ()
        single = {b3: leaves[b3] for b3 in wanted if not (packs and b3 in small)}
        self._total = sum(single.values()) + sum(size for _, size in packs)
        for b3, size in packs:
            self._keep_pack(b3, size, small)
        if packs and small:
            raise self._absent(min(small))
        self._keep_singles(single)
        self._taker.finish(inventory)
        return self._done

    def _keep_pack(self, b3: Digest, size: int, wanted: set[Digest]) -> None:
        """Bring in those of `wanted` that a pack holds, and take them out of it."""
        if size > MAX_PACK_BYTES:
            raise self._wrong(pack_path(b3), f"at most {MAX_PACK_BYTES} bytes", f"{size} bytes")
        data = self._proved(pack_path(b3), b3, size)
        try:
            slices = pack.decode(data)
        except InvalidRecordError as error:
            raise self._wrong(pack_path(b3), "a pack", error.reason) from error
        found = []
        for one in slices:
            inside = data[one.offset : one.offset + one.size_bytes]
            if one.b3 in wanted:
                if Digest.of_blob(inside) != one.b3:
                    raise self._wrong(pack_path(b3), str(one.b3), str(Digest.of_blob(inside)))
                wanted.discard(one.b3)
                found.append(Fetched(one.b3, one.size_bytes, data=inside))
        self._taker.keep(found)
        self._count(size)

    def _keep_singles(self, sizes: Mapping[Digest, int]) -> None:
        """Bring in blobs that lie by themselves, largest first, and publish them in batches."""
        waiting: list[Fetched] = []
        order = sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))
        try:
            for one in at_once(order, self._blob, jobs=self._jobs):
                waiting.append(one)
                is_full = sum(each.size_bytes for each in waiting) >= _BATCH_BYTES
                if is_full or len(waiting) >= _BATCH_COUNT:
                    self._taker.keep(waiting)
                    waiting = []
        finally:
            self._taker.keep(waiting)  # what came before a failure need not come again

    def _blob(self, blob: tuple[Digest, int]) -> Fetched:
        b3, size = blob
        if size <= _WHOLE_BYTES:
            data = self._proved(blob_path(b3), b3, size)
            self._count(size)
            return Fetched(b3, size, data=data)
        aside = self._taker.aside(b3, size)
        try:
            self._pour(b3, size, aside.path)
        except BaseException:
            aside.release()
            raise
        self._count(size)
        return Fetched(b3, size, aside=aside)

    def _pour(self, b3: Digest, size: int, path: str) -> None:
        """Fetch a blob into the file `path`, going on with what is there."""
        sink = FileSink(path)
        try:
            if sink.count > size:
                sink.restart()
            tries = TRIES + (1 if sink.count else 0)  # what an earlier process left may be wrong
            while True:
                self._into(sink, blob_path(b3), size)
                if sink.b3 == b3:
                    return
                actual, tries = sink.b3, tries - 1
                sink.restart()
                if not tries:
                    raise self._wrong(blob_path(b3), str(b3), str(actual))
        finally:
            sink.close()

    def _proved(self, path: str, b3: Digest, size: int) -> bytes:
        """A small object whose bytes have the digest `b3`."""
        tries = TRIES
        while True:
            sink = MemorySink()
            self._into(sink, path, size)
            data = bytes(sink.data)
            if Digest.of_blob(data) == b3:
                return data
            tries -= 1
            if not tries:
                raise self._wrong(path, str(b3), str(Digest.of_blob(data)))

    def _into(self, sink: MemorySink | FileSink, path: str, size: int) -> None:
        if not pour(self._place, path, sink, size=size, most=size, limits=self._limits):
            raise MissingObjectError("it is not there", file=f"{self._place.url}/{path}")

    def _count(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._on_bytes(self._done, self._total)

    def _wrong(self, path: str, expected: str, actual: str) -> CorruptObjectError:
        return CorruptObjectError(
            "not the object that was asked for",
            file=f"{self._place.url}/{path}",
            expected=expected,
            actual=actual,
        )

    def _absent(self, b3: Digest) -> MissingObjectError:
        return MissingObjectError(
            "a blob is in none of the tree's packs", file=self._place.url, expected=str(b3)
        )
