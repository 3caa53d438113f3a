"""The substituters of one run: asked for claims and bytes, believed in nothing.

One that does not answer is left alone from then on; one that gives something wrong is not asked for
that again. Whatever goes wrong is told, and never raised: the next one is asked, and in the end the
thing is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock

from kolm_build.core.digest import Digest, RecordKind
from kolm_build.errors import (
    CorruptObjectError,
    KolmError,
    MissingObjectError,
    NetworkError,
    NotReproducibleError,
    SignatureError,
)
from kolm_build.store.claims import Key, StoredRealisation
from kolm_build.store.inventory import Inventory
from kolm_build.store.layout import Kind
from kolm_build.store.local import LocalStore
from kolm_build.store.opened import ATTEMPTS
from kolm_build.store.remote.fetch import Fetch, OnBytes, fetch_inventory
from kolm_build.store.remote.layout import MAX_RECORD_BYTES, derivation_path, log_path
from kolm_build.store.remote.many import at_once
from kolm_build.store.remote.place import Limits, Place
from kolm_build.store.remote.pour import read
from kolm_build.store.remote.publish import check_format, read_claims
from kolm_build.store.restore import record_digest
from kolm_build.store.write import VanishedError

JOBS = 4
_RECORDS = {
    Kind.LOG: (log_path, None),
    Kind.DERIVATION: (derivation_path, RecordKind.DERIVATION),
}
"""Small objects that are asked for by their names: where they lie, and how the name is made."""
COPIED = "copied"
"""In the circumstances of a claim that this store made of another's: that one's digest."""

Judge = Callable[[StoredRealisation], str | None]
"""The trusted principal who vouches for a claim, or None; raises `SignatureError` for a forgery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What the claims about one output come to.

    Attributes:
        content: What may be used; None where nothing may.
        contested: The contents that trusted builders claim, where these are several: an alarm.
    """

    content: Digest | None = None
    contested: tuple[Digest, ...] = ()

    @property
    def contents(self) -> tuple[Digest, ...]:
        """The content to use; every one of them where it is contested and none may be used."""
        return self.contested if self.content is None else (self.content,)


Decide = Callable[[Sequence[StoredRealisation]], Belief]
"""What claims about one output, all by trusted builders, come to."""

OnTrouble = Callable[[str, KolmError], None]
"""Told the address of a substituter and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A tree that is here now.

    Attributes:
        source: The address of the substituter that gave the last of it.
        bytes_fetched: How many bytes came.
    """

    source: str
    bytes_fetched: int


@dataclass(slots=True)
class _Substituter:
    """One place, and what is known of it in this run."""

    place: Place
    is_checked: bool = False
    is_down: bool = False
    inventories: dict[Digest, Inventory | None] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Substitutes:
    """Several substituters, in the order in which they are asked.

    Attributes:
        places: Where they are.
        store: Where to bring things.
        judge: Whom to believe.
        decide: What their claims come to.
        limits: How patient to be.
        on_trouble: Told what is wrong with whom; called by several threads, one at a time.
    """

    places: Sequence[Place]
    store: LocalStore
    judge: Judge
    decide: Decide
    limits: Limits
    on_trouble: OnTrouble
    _those: list[_Substituter] = field(init=False)
    _believed: dict[Digest, list[StoredRealisation]] = field(default_factory=dict)
    _alarmed: set[Key] = field(default_factory=set)
    _refused: set[Digest] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._those = [_Substituter(place) for place in self.places]

    def close(self) -> None:
        """Let go of connections."""
        for place in self.places:
            place.close()

    # Claims

    def contents_of(self, keys: Sequence[Key]) -> Mapping[Key, tuple[Digest, ...]]:
        """The contents that are believed for each key: none, one, or a contested several."""
        new = sorted({resolved for resolved, _ in keys} - self._believed.keys())
        pairs = [(one, resolved) for resolved in new for one in self._those]
        self._believed.update({resolved: [] for resolved in new})
        for resolved, claims in at_once(pairs, self._ask_claims, jobs=JOBS):
            self._believed[resolved].extend(claims)
        contents = {key: self._belief(*key).contents for key in keys}
        return {key: some for key, some in contents.items() if some}

    def _ask_claims(
        self, pair: tuple[_Substituter, Digest]
    ) -> tuple[Digest, list[StoredRealisation]]:
        one, resolved = pair
        if not self._is_up(one):
            return resolved, []
        try:
            claims = read_claims(one.place, resolved, self.limits)
        except KolmError as error:
            self._trouble(one, error)
            return resolved, []
        return resolved, [claim for claim in claims if self._voter(one.place.url, claim)]

    def _voter(self, url: str, claim: StoredRealisation) -> str | None:
        try:
            return self.judge(claim)
        except SignatureError as error:
            with self._lock:
                self.on_trouble(url, error)
            return None

    def _belief(self, resolved: Digest, output: str) -> Belief:
        """What to believe of one output; a contested one that may be used is told of, once."""
        claims = [one for one in self._believed[resolved] if one.realisation.output == output]
        found = self.decide(claims)
        if found.content is not None and found.contested:
            with self._lock:
                if (resolved, output) not in self._alarmed:
                    self._alarmed.add((resolved, output))
                    self._alarm(found, output)
        return found

    def _alarm(self, found: Belief, output: str) -> None:
        error = NotReproducibleError(
            "trusted builders claim several contents; the policy uses that of the majority",
            where=output,
            expected=str(found.content),
            actual=", ".join(str(one) for one in found.contested if one != found.content),
            advice="`kolm trust` shows who claims what.",
        )
        self.on_trouble(", ".join(place.url for place in self.places), error)

    def keep(self, resolved: Digest, derivation: Digest) -> None:
        """Keep in the store what is believed about a resolved derivation.

        Args:
            resolved: The resolved derivation.
            derivation: What it was resolved from here; the claims may come from another.
        """
        for claim in self._believed.get(resolved, ()):
            made = claim.realisation
            if self._belief(resolved, made.output).content != made.content:
                continue
            self.store.add_claim(claim)
            self._keep_log(claim)
            if claim.derivation != derivation:
                digest = Digest.of_blob(claim.encode())
                mine = StoredRealisation(
                    realisation=claim.realisation,
                    derivation=derivation,
                    circumstances={COPIED: str(digest)},
                )
                self.store.add_claim(mine)

    def _keep_log(self, claim: StoredRealisation) -> None:
        """Keep the log of a build, if somebody has it; nothing depends on it."""
        text = claim.circumstances.get("log")
        if not isinstance(text, str):
            return
        with suppress(KolmError):
            data = self.record(Kind.LOG, Digest.parse(text))
            if data is not None:
                self.store.put_log(data)

    def record(self, kind: Kind, digest: Digest) -> bytes | None:
        """A log or derivation, proved; None where nobody has it, and for other kinds."""
        if kind not in _RECORDS:
            return None
        path_of, context = _RECORDS[kind]
        for one in self._those:
            try:
                data = self._is_up(one) and read(
                    one.place, path_of(digest), most=MAX_RECORD_BYTES, limits=self.limits
                )
            except KolmError:
                continue
            if data and record_digest(data, context) == digest:
                return data
        return None

    # Bytes

    def offered(self, trees: Iterable[Digest]) -> set[Digest]:
        """Those trees whose inventory a substituter has."""
        wanted = sorted(set(trees) - self._refused)
        offers = at_once(wanted, lambda tree: (tree, self._is_offered(tree)), jobs=JOBS)
        return {tree for tree, is_offered in offers if is_offered}

    def _is_offered(self, tree: Digest) -> bool:
        return any(self._inventory(one, tree) is not None for one in self._those)

    def _inventory(self, one: _Substituter, tree: Digest) -> Inventory | None:
        if not self._is_up(one):
            return None
        if tree not in one.inventories:
            try:
                one.inventories[tree] = fetch_inventory(one.place, tree, self.limits)
            except KolmError as error:
                self._trouble(one, error)
                one.inventories[tree] = None
        return one.inventories[tree]

    def fetch(self, tree: Digest, on_bytes: OnBytes) -> Arrived | None:
        """Bring in a tree; None where nobody could give all of it.

        Args:
            tree: The tree.
            on_bytes: Told how many bytes of how many have come.
        """
        if tree in self._refused:
            return None
        count = 0
        for one in self._those:
            inventory = self._inventory(one, tree)
            if inventory is None:
                continue
            try:
                count += self._fetch(one, inventory, on_bytes)
            except (NetworkError, CorruptObjectError, MissingObjectError) as error:
                self._trouble(one, error)
                one.inventories[tree] = None
                continue
            return Arrived(source=one.place.url, bytes_fetched=count)
        self._refused.add(tree)
        return None

    def _fetch(self, one: _Substituter, inventory: Inventory, on_bytes: OnBytes) -> int:
        for _ in range(ATTEMPTS - 1):
            with suppress(VanishedError):
                return self._fetch_once(one, inventory, on_bytes)
        return self._fetch_once(one, inventory, on_bytes)

    def _fetch_once(self, one: _Substituter, inventory: Inventory, on_bytes: OnBytes) -> int:
        taker = self.store.taker()
        job = Fetch(one.place, taker, limits=self.limits, jobs=JOBS, on_bytes=on_bytes)
        return job.tree(inventory)

    # Trouble

    def _is_up(self, one: _Substituter) -> bool:
        with self._lock:
            if one.is_down or one.is_checked:
                return not one.is_down
        error: KolmError | None = None
        try:
            if not check_format(one.place, self.limits):
                error = NetworkError("no substituter is there", file=one.place.url)
        except KolmError as caught:
            error = caught
        with self._lock:
            one.is_checked = True
            if error is not None and not one.is_down:
                one.is_down = True
                self.on_trouble(one.place.url, error)
        return not one.is_down

    def _trouble(self, one: _Substituter, error: KolmError) -> None:
        """Tell of it; who does not answer is left alone from now on."""
        with self._lock:
            if one.is_down:
                return
            one.is_down = isinstance(error, NetworkError)
            self.on_trouble(one.place.url, error)
