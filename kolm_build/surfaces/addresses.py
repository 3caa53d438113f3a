"""The substituters that a command line and the user's settings name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kolm_build.errors import NetworkError
from kolm_build.store.remote.address import is_network, open_place
from kolm_build.store.remote.credentials import Credentials
from kolm_build.store.remote.place import Limits, Place
from kolm_build.surfaces import places

if TYPE_CHECKING:
    from kolm_build.surfaces.terminal import Terminal


def addresses(named: Sequence[str], *, offline: bool, terminal: Terminal) -> list[str]:
    """Where to look: what the command line names, then what the settings name, each once.

    Raises:
        NetworkError: The command line names one on the network, and `offline` forbids that.
    """
    for address in named:
        if offline and is_network(address):
            raise NetworkError(
                "--offline forbids asking a substituter on the network",
                file=address,
                advice="Leave out one of the two, or name a folder: file:///FOLDER.",
            )
    own = [one for one in places.own_substituters() if not (offline and is_network(one))]
    for address in places.own_substituters():
        if address not in own:
            terminal.tell(f"not asked, because of --offline: {address}", "yellow")
    return list(dict.fromkeys([*named, *own]))


def place_at(address: str, limits: Limits) -> Place:
    """The place at `address`, with what the user's settings open it by."""
    bucket, registry = places.bucket_credentials(), places.registry_credentials()
    return open_place(
        address,
        limits=limits,
        bucket=bucket and Credentials(name=bucket[0], secret=bucket[1], token=bucket[2]),
        registry=registry and Credentials(name=registry[0], secret=registry[1]),
    )
