"""What belongs into a pack: one walk, for the writer and for the reader (spec/kolmpack.md).

The writer takes what the walk reaches from the targets; the reader walks the same way over what
came and refuses a pack that lacks something or holds something more. So neither can disagree with
the other about what a whole pack is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

from kolm_build.core.derivation import ContentInput, Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.kolmpack import LOG, PackKind, Part, Target
from kolm_build.core.plan import Plan, plan
from kolm_build.core.tree import File, Folder, Tree
from kolm_build.errors import InvalidRecordError, PackIncompleteError
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.join import Join

Key = tuple[PackKind, Digest]
"""An object: its kind and its name."""


class Source(Protocol):
    """Where the walk finds records; each raises a KolmError where there is no such object."""

    def derivation(self, digest: Digest) -> Derivation:
        """A derivation."""

    def tree(self, digest: Digest) -> Tree:
        """A tree."""

    def join(self, b3: Digest) -> Join | None:
        """The parts of a blob that is kept in parts; None for one that is whole."""

    def has_log(self, digest: Digest) -> bool:
        """Whether a log is here; one that is not is left out."""

    def stops(self, kind: PackKind, digest: Digest) -> bool:
        """Whether the receiver has this object, with all below it, from elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the walk begins.

    Attributes:
        targets: The wanted outputs.
        project: The tree of the project's own files.
        environments: Environment to its tree.
        claims: Claims by their digests.
        left_out: Contents of outputs that do not travel.
    """

    targets: Sequence[Target]
    project: Digest
    environments: Sequence[tuple[Digest, Digest]]
    claims: Mapping[Digest, StoredRealisation]
    left_out: Set[Digest]


@dataclass(slots=True)
class Reached:
    """What the walk found.

    Attributes:
        parts: Every object that travels, and what it is there for.
        needs: The objects at which the walk stopped because the receiver has them.
        left_out: The contents that were come to and do not travel.
        derivations: Every derivation.
        tops: The trees that were come to from anything but a tree.
        files: Blob to the (sha256, size) pairs that files of carried trees claim for it.
    """

    parts: dict[Key, Part] = field(default_factory=dict)
    needs: set[Key] = field(default_factory=set)
    left_out: set[Digest] = field(default_factory=set)
    derivations: dict[Digest, Derivation] = field(default_factory=dict)
    tops: set[Digest] = field(default_factory=set)
    files: dict[Digest, set[File]] = field(default_factory=dict)


def reach(source: Source, roots: Roots) -> Reached:
    """Everything that belongs to a pack with these roots.

    Raises:
        KolmError: As `source` raises for what it does not have.
        PackIncompleteError: A claim or an environment belongs to nothing that is reached.
        NotReproducibleError: Two contents are claimed for one output.
    """
    walk = _Walk(source, roots)
    walk.derivations()
    for part, trees in walk.inputs():
        for tree in trees:
            walk.tree(tree, part)
    walk.outputs()
    return walk.found


class _Walk:
    """The walk: parts in the order in which an object is counted for the first of them."""

    def __init__(self, source: Source, roots: Roots) -> None:
        self._source = source
        self._roots = roots
        self.found = Reached()

    def derivations(self) -> None:
        """Everything that the targets are built from."""
        todo = [target.derivation for target in self._roots.targets]
        while todo:
            digest = todo.pop()
            if digest in self.found.derivations:
                continue
            made = self._source.derivation(digest)
            self.found.derivations[digest] = made
            self.found.parts[PackKind.DERIVATION, digest] = Part.DERIVATIONS
            todo.extend(need.derivation for need in made.needs)
        for target in self._roots.targets:
            _check_output(self.found.derivations, target.derivation, target.output, target.label)

    def inputs(self) -> Iterator[tuple[Part, Iterable[Digest]]]:
        """The trees that a rebuild begins with, part by part."""
        made = [node for _, node in sorted(self.found.derivations.items())]
        yield Part.FETCHED, [tree for node in made if node.is_fixed for tree in _fixed(node)]
        yield Part.CODE, [node.code for node in made]
        yield Part.INPUTS, [content for node in made for content in _given(node)]
        yield Part.ENVIRONMENTS, self._environments()
        yield Part.PROJECT, [self._roots.project]

    def _environments(self) -> Iterator[Digest]:
        named = {node.environment for node in self.found.derivations.values()}
        for environment, tree in self._roots.environments:
            if environment not in named:
                raise PackIncompleteError(
                    "an environment that no derivation names", actual=str(environment)
                )
            yield tree

    def outputs(self) -> None:
        """What was built, and the claims and logs that say so."""
        plan = self._plan()
        for target in self._roots.targets:
            _check_content(target, plan)
            if target.content is not None:
                self._content(target.content)
        keys = {
            (plan.resolved[digest], output)
            for digest, node in self.found.derivations.items()
            if digest in plan.resolved
            for output, _ in node.outputs
        }
        for digest, claim in sorted(self._roots.claims.items()):
            fact = claim.realisation
            if (fact.resolved, fact.output) not in keys:
                raise PackIncompleteError(
                    "a claim about nothing in the pack",
                    where=f"claim {digest}",
                    actual=f"{fact.output} of {fact.resolved}",
                )
            self.found.parts[PackKind.CLAIM, digest] = Part.CLAIMS
            self._content(fact.content)
            log = log_named(claim)
            if log is not None and self._source.has_log(log):
                self.found.parts[PackKind.LOG, log] = Part.LOGS

    def _plan(self) -> Plan:
        """What the claims tell of every output; refuses claims that disagree."""
        claimed: dict[tuple[Digest, str], set[Digest]] = {}
        for claim in self._roots.claims.values():
            fact = claim.realisation
            claimed.setdefault((fact.resolved, fact.output), set()).add(fact.content)
        return plan(
            [OutputInput(derivation=one.derivation, output=one.output)
             for one in self._roots.targets],
            derivations=self.found.derivations,
            lookup=lambda keys: {
                key: tuple(sorted(claimed[key])) for key in keys if key in claimed
            },
            present=frozenset,
        )  # fmt: skip

    def _content(self, tree: Digest) -> None:
        if (PackKind.TREE, tree) in self.found.parts:
            return
        if tree in self._roots.left_out:
            self.found.left_out.add(tree)
        else:
            self.tree(tree, Part.OUTPUTS)

    def tree(self, top: Digest, part: Part) -> None:
        """A tree and all below it."""
        self.found.tops.add(top)
        todo = [top]
        while todo:
            digest = todo.pop()
            key = (PackKind.TREE, digest)
            if key in self.found.parts or key in self.found.needs:
                continue
            if self._source.stops(*key):
                self.found.needs.add(key)
                continue
            self.found.parts[key] = part
            for _, node in self._source.tree(digest).entries:
                if isinstance(node, Folder):
                    todo.append(node.tree)
                elif isinstance(node, File):
                    self.found.files.setdefault(node.b3, set()).add(_facts(node))
                    self._blob(node.b3, part)

    def _blob(self, b3: Digest, part: Part) -> None:
        if self._source.stops(PackKind.BLOB, b3):
            self.found.needs.add((PackKind.BLOB, b3))
            return
        join = self._source.join(b3)
        if join is None:
            self.found.parts.setdefault((PackKind.BLOB, b3), part)
        elif (PackKind.JOIN, b3) not in self.found.parts:
            self.found.parts[PackKind.JOIN, b3] = part
            for piece, _ in join.parts:
                self._piece(piece, part)

    def _piece(self, b3: Digest, part: Part) -> None:
        """A part of a joined blob, which is itself whole."""
        if self._source.stops(PackKind.BLOB, b3):
            self.found.needs.add((PackKind.BLOB, b3))
        else:
            self.found.parts.setdefault((PackKind.BLOB, b3), part)


def _fixed(node: Derivation) -> Iterator[Digest]:
    """The contents that a derivation's outputs must have."""
    return (tree for _, tree in node.outputs if tree is not None)


def _given(node: Derivation) -> Iterator[Digest]:
    """The inputs that a derivation names by content."""
    return (value.content for _, value in node.inputs if isinstance(value, ContentInput))


def log_named(claim: StoredRealisation) -> Digest | None:
    """The log that a claim's circumstances name, if they name one."""
    text = claim.circumstances.get(LOG)
    try:
        return Digest.parse(text) if isinstance(text, str) else None
    except InvalidRecordError:
        return None


def _check_content(target: Target, known: Plan) -> None:
    output = OutputInput(derivation=target.derivation, output=target.output)
    content = known.contents.get(output)
    if target.content != content:
        raise PackIncompleteError(
            "a target has another content than its derivation and the claims say",
            where=target.label,
            expected=str(content or "unknown"),
            actual=str(target.content or "unknown"),
        )


def _facts(node: File) -> File:
    """What a file says of its bytes, without whether it may be executed."""
    return File(b3=node.b3, sha256=node.sha256, size_bytes=node.size_bytes)


def _check_output(
    derivations: Mapping[Digest, Derivation], derivation: Digest, output: str, where: str
) -> None:
    node = derivations.get(derivation)
    if node is None or output not in dict(node.outputs):
        raise PackIncompleteError(
            "an output that no derivation of the pack has",
            where=where,
            actual=f"{output} of {derivation}",
        )
