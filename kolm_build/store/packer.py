"""Writing packs: what a rebuild needs, taken out of a store (spec/kolmpack.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.kolmpack import Entry, Head, PackKind, Part, Target, pack_id, prefix
from kolm_build.core.plan import Plan, plan
from kolm_build.core.tree import Tree
from kolm_build.errors import CorruptObjectError, MissingObjectError
from kolm_build.store import claims
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.index import Index
from kolm_build.store.join import Join
from kolm_build.store.layout import Form, Kind
from kolm_build.store.reach import Reached, Roots, reach
from kolm_build.store.restore import Reader

Have = Callable[[PackKind, Digest], bool]
"""Whether the receiver has a tree or blob, with all below it."""

STORED_AS: Mapping[PackKind, Kind] = {
    PackKind.DERIVATION: Kind.DERIVATION,
    PackKind.TREE: Kind.TREE,
    PackKind.CLAIM: Kind.CLAIM,
    PackKind.JOIN: Kind.BLOB,
    PackKind.LOG: Kind.LOG,
    PackKind.BLOB: Kind.BLOB,
}
CONTEXTS: Mapping[PackKind, RecordKind | None] = {
    PackKind.DERIVATION: RecordKind.DERIVATION,
    PackKind.TREE: RecordKind.TREE,
    PackKind.CLAIM: None,
    PackKind.LOG: None,
    PackKind.BLOB: None,
}
"""How the name of an object is made; a join is named by what it describes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a pack is to hold.

    Attributes:
        name: The project's name.
        outputs: Label to output; their derivations are in the store.
        project: The tree of the project's own files.
        environments: Environment to its tree, for those that the store holds.
        without_outputs: Leave out what can be built.
    """

    name: str
    outputs: Mapping[str, OutputInput]
    project: Digest
    environments: Mapping[Digest, Digest]
    without_outputs: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a pack is there for one purpose.

    Attributes:
        objects: How many objects.
        size_bytes: Their bytes.
    """

    objects: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """A pack that can be written.

    Attributes:
        head: Its head.
        shares: Part to its share; every part, empty ones too.
        derivations: Every derivation in it, by digest.
        claims: Every claim in it, by digest.
    """

    head: Head
    shares: Mapping[Part, Share]
    derivations: Mapping[Digest, Derivation]
    claims: Mapping[Digest, StoredRealisation]

    @property
    def id(self) -> Digest:
        """The pack's id."""
        return pack_id(self.head.encode())


class Packer:
    """Makes packs out of one store.

    Args:
        index: The store's index.
        reader: Reads its objects.
        have: What the receiver has already; a thin pack leaves it out.
    """

    def __init__(self, index: Index, reader: Reader, *, have: Have | None = None) -> None:
        self._index = index
        self._reader = reader
        self._have = have or (lambda _kind, _digest: False)

    def plan(self, wanted: Wanted) -> Packing:
        """The pack of `wanted`.

        Raises:
            MissingObjectError: A target was never built, or something it is made from is gone.
            NotReproducibleError: Two contents are claimed for one output.
        """
        known = self._known(wanted)
        targets = tuple(
            Target(
                label=label,
                derivation=output.derivation,
                output=output.output,
                content=known.contents.get(output),
            )
            for label, output in sorted(wanted.outputs.items())
        )
        if not wanted.without_outputs:
            self._check_built(targets)
        said = self._claims(known)
        roots = Roots(
            targets=targets,
            project=wanted.project,
            environments=sorted(wanted.environments.items()),
            claims=said,
            left_out=self._left_out(known, everything=wanted.without_outputs),
        )
        found = reach(self, roots)
        classes = {made.numerics.cls for made in found.derivations.values()}
        head = Head(
            name=wanted.name,
            targets=targets,
            project=wanted.project,
            environments=tuple(sorted(wanted.environments.items())),
            classes=tuple(sorted(classes)),
            objects=tuple(sorted(self._entry(*key, said) for key in found.parts)),
            needs=tuple(sorted(self._entry(*key, said) for key in found.needs)),
            left_out=tuple(sorted(found.left_out)),
        )
        return Packing(
            head=head, shares=shares(head, found), derivations=found.derivations, claims=said
        )

    def write(self, packing: Packing, write: Callable[[bytes | memoryview], object]) -> None:
        """Write a pack, its objects checked on their way out.

        Raises:
            CorruptObjectError: An object's bytes changed; what was written is no pack.
        """
        head = packing.head.encode()
        write(prefix(head))
        write(head)
        for entry in packing.head.objects:
            written = 0
            for data in self._bytes(entry, packing.claims):
                write(data)
                written += len(data)
            if written != entry.size_bytes:
                raise CorruptObjectError(
                    "an object has another size than the index says",
                    where=str(entry.digest),
                    expected=f"{entry.size_bytes} bytes",
                    actual=f"{written} bytes",
                )

    # The walk's source

    def derivation(self, digest: Digest) -> Derivation:
        """A derivation of the store."""
        data = self._reader.record(Kind.DERIVATION, digest, context=RecordKind.DERIVATION)
        return Derivation.decode(data)

    def tree(self, digest: Digest) -> Tree:
        """A tree of the store."""
        return self._reader.tree(digest)

    def join(self, b3: Digest) -> Join | None:
        """The parts of a blob that the store keeps in parts, each of them whole."""
        row = self._index.row(Kind.BLOB, b3)
        if row is None or row.form is not Form.JOINED:
            return None
        return Join(b3=b3, parts=tuple(self._reader.leaves(b3)))

    def has_log(self, digest: Digest) -> bool:
        """Whether the store has the log."""
        return self._index.has(Kind.LOG, digest)

    def stops(self, kind: PackKind, digest: Digest) -> bool:
        """Whether the receiver has it."""
        return self._have(kind, digest)

    # Inside

    def _known(self, wanted: Wanted) -> Plan:
        derivations: dict[Digest, Derivation] = {}
        todo = [output.derivation for output in wanted.outputs.values()]
        while todo:
            digest = todo.pop()
            if digest not in derivations:
                derivations[digest] = self.derivation(digest)
                todo.extend(need.derivation for need in derivations[digest].needs)
        return plan(
            tuple(wanted.outputs.values()),
            derivations=derivations,
            lookup=lambda keys: claims.contents_of(self._index, keys),
            present=frozenset,
        )

    def _check_built(self, targets: tuple[Target, ...]) -> None:
        for target in targets:
            if target.content is None or not self._index.has(Kind.TREE, target.content):
                raise MissingObjectError(
                    "it was never built here, or its bytes are gone",
                    where=target.label,
                    advice="`kolm build` builds it; --without-outputs packs what builds it.",
                )

    def _claims(self, known: Plan) -> dict[Digest, StoredRealisation]:
        """The claims, as they leave the store: what a pack brought goes out as it came."""
        names = {name for action in known.actions for name, _ in action.contents}
        found = {}
        for resolved in set(known.resolved.values()):
            for name in names:
                for digest in claims.of_output(self._index, resolved, name):
                    data = self._reader.record(Kind.CLAIM, digest, context=None)
                    claim = StoredRealisation.decode(data).bare()
                    found[Digest.of_blob(claim.encode())] = claim
        return found

    def _left_out(self, known: Plan, *, everything: bool) -> frozenset[Digest]:
        """The contents that do not travel: those that are gone, or all of them."""
        contents = set(known.contents.values())
        return frozenset(contents if everything else contents - self._present(contents))

    def _present(self, trees: set[Digest]) -> set[Digest]:
        return self._index.present(Kind.TREE, trees)

    def _entry(
        self, kind: PackKind, digest: Digest, said: Mapping[Digest, StoredRealisation]
    ) -> Entry:
        if kind is PackKind.JOIN:
            return Entry(kind, digest, len(self._join_bytes(digest)))
        if kind is PackKind.CLAIM:
            return Entry(kind, digest, len(said[digest].encode()))
        row = self._index.row(STORED_AS[kind], digest)
        if row is None:
            raise MissingObjectError("not in the store", expected=str(digest))
        return Entry(kind, digest, row.size_bytes)

    def _join_bytes(self, b3: Digest) -> bytes:
        join = self.join(b3)
        assert join is not None
        return join.encode()

    def _bytes(
        self, entry: Entry, said: Mapping[Digest, StoredRealisation]
    ) -> Iterator[bytes | memoryview]:
        if entry.kind is PackKind.BLOB:
            yield from self._reader.stream(entry.digest)
        elif entry.kind is PackKind.JOIN:
            yield self._join_bytes(entry.digest)
        elif entry.kind is PackKind.CLAIM:
            yield said[entry.digest].encode()
        else:
            kind, context = STORED_AS[entry.kind], CONTEXTS[entry.kind]
            yield self._reader.record(kind, entry.digest, context=context)


def shares(head: Head, found: Reached) -> Mapping[Part, Share]:
    """How the objects of a pack fall to its parts."""
    counts = dict.fromkeys(Part, 0)
    sizes = dict.fromkeys(Part, 0)
    for entry in head.objects:
        part = found.parts[entry.kind, entry.digest]
        counts[part] += 1
        sizes[part] += entry.size_bytes
    return {part: Share(counts[part], sizes[part]) for part in Part}
