"""What goes from store to store: object by object, or as a pack."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kolm_build.store.door import door
from kolm_build.store.opened import Opened
from kolm_build.store.write import Batch

if TYPE_CHECKING:
    from kolm_build.store.give import Giver
    from kolm_build.store.packer import Have, Packing, Wanted
    from kolm_build.store.packfile import PackFile
    from kolm_build.store.take import Taker
    from kolm_build.store.unpacker import Judge, Taken


class Exchange(Opened):
    """What an open store gives to others and takes from them."""

    def giver(self) -> Giver:
        """What gives objects away as they are kept, each checked."""
        from kolm_build.store.give import Giver

        return Giver(self._layout, self._index, self._reader)

    def taker(self) -> Taker:
        """What brings fetched objects in, each proved; what it took stays until this is closed."""
        from kolm_build.store.take import Taker

        with door(self._layout.root):
            return Taker(self._layout, self._index, self._reader, self._writer())

    def plan_pack(self, wanted: Wanted, *, have: Have | None = None) -> Packing:
        """The pack that holds what `wanted` says; its trees stay until the store is closed.

        Args:
            wanted: What it is to hold.
            have: What the receiver has already, to be left out.

        Raises:
            MissingObjectError: A target was never built, or something it needs is gone.
            NotReproducibleError: Two contents are claimed for one output.
        """
        from kolm_build.core.kolmpack import PackKind
        from kolm_build.store.packer import Packer

        with door(self._layout.root):
            packing = Packer(self._index, self._reader, have=have).plan(wanted)
        if not self._read_only:
            self.pin(one.digest for one in packing.head.objects if one.kind is PackKind.TREE)
        return packing

    def write_pack(self, packing: Packing, write: Callable[[bytes | memoryview], object]) -> None:
        """Write a pack piece by piece, every object checked on its way out.

        Raises:
            CorruptObjectError: An object's bytes changed; what was written is no pack.
        """
        from kolm_build.store.packer import Packer

        with door(self._layout.root):
            Packer(self._index, self._reader).write(packing, write)

    def take_pack(
        self,
        file: PackFile,
        *,
        accept_claims: bool = False,
        on_bytes: Callable[[int], None] = lambda _: None,
        judge: Judge = lambda _: None,
    ) -> Taken:
        """Take a pack in: everything is checked, then all of it is valid at once, with a root.

        Args:
            file: The open pack.
            accept_claims: Believe what it says was built from what.
            on_bytes: Told how many bytes have been checked.
            judge: Looks at what is delivered before anything is taken; raises to refuse it.

        Raises:
            PackError: It does not hold; the store is as it was.
            MissingObjectError: It is thin, and its other part is not here.
        """
        from kolm_build.store.unpacker import Unpacker

        def take(batch: Batch) -> Taken:
            return Unpacker(
                self._layout,
                self._index,
                self._reader,
                self._writer(),
                file=file,
                accept_claims=accept_claims,
                on_bytes=on_bytes,
                judge=judge,
            ).take(batch)

        return self._attempted(take)
