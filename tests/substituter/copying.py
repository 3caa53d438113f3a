"""Short ways to copy in the tests."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kolm_build.attest.claims import Fact
from kolm_build.attest.keys import PublicKey, SigningKey
from kolm_build.attest.testimony import FoundClaim, examine
from kolm_build.attest.trust import Principal, TrustPolicy
from kolm_build.core.digest import Digest
from kolm_build.store.local import LocalStore
from kolm_build.store.remote.place import Limits, Place
from kolm_build.store.remote.publish import Publisher
from kolm_build.store.remote.substitutes import Substitutes
from kolm_build.surfaces.substituting import believed, judge_of, signed
from tests.store.builders import make_folder, safetensors

# A clock of their own would hide a hang; short waits on a busy machine cost time, never a result.
QUICK = Limits(timeout_s=0.4, pause_s=0.0, grace_s=0.5, least_bytes_per_s=10_000)


def noise(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def publish(store: LocalStore, place: Place, *trees: Digest, limits: Limits = QUICK) -> int:
    """Copy trees to a place; how many bytes went."""
    publisher = Publisher(place, store.giver(), limits=limits, jobs=2, on_bytes=lambda *_: None)
    publisher.begin()
    return sum(publisher.tree(tree) for tree in trees)


def signing_key(seed: bytes = b"one") -> SigningKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(seed.ljust(32, b"-"))
    return SigningKey(PublicKey(private.public_key().public_bytes_raw()), private.sign)


def trusting(threshold: int = 1, **keys: SigningKey) -> TrustPolicy:
    """Each name a builder with one key."""
    return TrustPolicy(
        principals=tuple(
            Principal(name=name, roles=("builder",), keys=(key.public,))
            for name, key in keys.items()
        ),
        thresholds={"builder": threshold},
    )


def builder_of(envelope: bytes, fact: Fact, trust: TrustPolicy) -> str | None:
    """The trusted builder who claims to have built `fact`."""
    vote = examine(FoundClaim(fact=fact, envelope=envelope), trust)
    return vote.signer if vote.is_valid else None


def publish_claims(store, place, resolved, output="out", key=None) -> None:
    """Publish a store's claims on one output, signed."""
    publisher = Publisher(place, store.giver(), limits=QUICK, jobs=1, on_bytes=lambda *_: None)
    publisher.begin()
    claims = store.realisations(resolved, output)
    publisher.claims(resolved, [signed(claim, key) for claim in claims])


class Others(Substitutes):
    """Substitutes that remember what went wrong."""

    troubles: list


@contextmanager
def substitutes(store, *places, trust=None, limits=QUICK):
    """Several places to copy from into `store`."""
    troubles = []
    made = Substitutes(
        places=places,
        store=store,
        judge=judge_of(trust),
        decide=lambda claims: believed(claims, trust),
        limits=limits,
        on_trouble=lambda url, error: troubles.append((url, error)),
    )
    try:
        yield made, troubles
    finally:
        made.close()


def fetch(store, tree, *places, limits=QUICK):
    """The tree's source, or None; and what went wrong."""
    with substitutes(store, *places, limits=limits) as (made, troubles):
        arrived = made.fetch(tree, lambda *_: None)
        return arrived, [error for _, error in troubles]


def model_folder(path: Path) -> Path:
    """Many small files, a large one, and two that share tensors."""
    shared = {f"layer.{n}": noise(300_000, n) for n in range(4)}
    files = {f"notes/{n:03}.txt": noise(100 + n, n) for n in range(60)}
    files |= {
        "a.safetensors": safetensors({**shared, "head": noise(9000, 9)}),
        "b.safetensors": safetensors({**shared, "head": noise(9000, 10)}),
        "empty": b"",
        "large.bin": noise(12 << 20, 5),
        "sub/deep/file": b"deep",
    }
    folder = make_folder(path, files)
    (folder / "sub/link").symlink_to("deep/file")
    (folder / "sub/deep/file").chmod(0o755)
    return folder


def with_timeout(seconds: float) -> Limits:
    return replace(QUICK, timeout_s=seconds)
