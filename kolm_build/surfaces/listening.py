"""Hearing claims for a command: where from, and how troubles are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kolm_build.engine.events import SubstituterTrouble
from kolm_build.errors import Exit, KolmError
from kolm_build.store.remote.place import Limits
from kolm_build.surfaces.addresses import place_at
from kolm_build.surfaces.hearing import (
    STORE,
    Claimed,
    Hearing,
    OnTrouble,
    claims_of_place,
    claims_of_store,
)
from kolm_build.surfaces.progress import json_lines, trouble_lines

if TYPE_CHECKING:
    from kolm_build.attest.trust import TrustPolicy
    from kolm_build.core.derivation import OutputInput
    from kolm_build.core.instantiation.instance import Instance
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.terminal import Terminal


class Troubles:
    """Tells what is wrong with substituters, and remembers it.

    Args:
        terminal: Where to.
        json: Whether to tell it as an event.
    """

    def __init__(self, terminal: Terminal, *, json: bool) -> None:
        self._tell = json_lines(terminal) if json else trouble_lines(terminal)
        self._found: list[KolmError] = []

    def __call__(self, url: str, error: KolmError) -> None:
        """Tell of `error` at `url`."""
        self._found.append(error)
        self._tell(SubstituterTrouble(url=url, error=error))

    def __len__(self) -> int:
        """How many there were."""
        return len(self._found)

    @property
    def exit(self) -> Exit:
        """The bits of all of them."""
        status = Exit.OK
        for error in self._found:
            status |= error.exit
        return status


def hear(
    instance: Instance,
    wanted: Iterable[OutputInput],
    urls: Sequence[str],
    *,
    store: LocalStore,
    trust: TrustPolicy | None,
    on_trouble: OnTrouble,
) -> list[Claimed]:
    """What the store and the substituters at `urls` claim of `wanted` and all they are made from.

    Args:
        instance: The project's derivations.
        wanted: The outputs.
        urls: Addresses.
        store: The store.
        trust: Whose word settles which content to go on with.
        on_trouble: Told what is wrong with whom.
    """
    limits = Limits()
    with ExitStack() as stack:
        sources = [(STORE, claims_of_store(store))]
        for url in urls:
            place = place_at(url, limits)
            stack.callback(place.close)
            sources.append((url, claims_of_place(place, limits, on_trouble)))
        return Hearing(instance=instance, sources=sources, trust=trust).hear(wanted)
