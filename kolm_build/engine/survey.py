"""What is there already, and so what is to be done: the plan that `--dry-run` prints.

Downwards: a derivation whose inputs' contents are known is resolved and looked up, which may make
its own contents known. Upwards: whatever is wanted and not there is built, and needs its inputs.
What follows from something that is to be built cannot be looked up yet; it may still be cut off
when its inputs come out the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kolm_build.core.closure import closure
from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.engine.protocol import Store
from kolm_build.engine.rebuilder import Mode, sole
from kolm_build.errors import InvalidRecordError

Derivations = Mapping[Digest, Derivation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is known before anything is built.

    Attributes:
        order: The derivations that are wanted and all they need, needs first.
        contents: The contents that are known; their trees need not be there.
        keys: The digest of each derivation that could be resolved, resolved.
    """

    order: tuple[Digest, ...]
    contents: Mapping[OutputInput, Digest]
    keys: Mapping[Digest, Digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        reuse: Derivations whose needed outputs are there; nothing above them is looked at.
        build: Derivations to be built, needs first; those below another one of them may yet be
            cut off.
        needed: For each of both, the outputs whose trees must be there.
    """

    reuse: tuple[Digest, ...]
    build: tuple[Digest, ...]
    needed: Mapping[Digest, frozenset[str]]


def survey(wanted: Iterable[OutputInput], derivations: Derivations, store: Store) -> Survey:
    """Look up what the store knows of `wanted` and all it needs.

    Raises:
        InvalidRecordError: A derivation is needed and not given.
        NotReproducibleError: Claims for something needed disagree.
    """
    order = closure(
        (one.derivation for one in wanted),
        lambda digest: [need.derivation for need in _given(digest, derivations).needs],
    )
    contents: dict[OutputInput, Digest] = {}
    keys: dict[Digest, Digest] = {}
    for level in _levels(order, derivations):
        for digest in level:
            node = derivations[digest]
            if all(need in contents for need in node.needs):
                keys[digest] = node.resolve(contents).resolved_digest
        _look_up(level, derivations, keys, contents, store)
    return Survey(order=order, contents=contents, keys=keys)


def _given(digest: Digest, derivations: Derivations) -> Derivation:
    node = derivations.get(digest)
    if node is None:
        raise InvalidRecordError("a derivation is needed and not given", actual=str(digest))
    return node


def _levels(order: Sequence[Digest], derivations: Derivations) -> list[list[Digest]]:
    """`order` in groups: each needs earlier groups only, and can be looked up at once."""
    level: dict[Digest, int] = {}
    groups: list[list[Digest]] = []
    for digest in order:
        at = 1 + max((level[need.derivation] for need in derivations[digest].needs), default=-1)
        level[digest] = at
        if at == len(groups):
            groups.append([])
        groups[at].append(digest)
    return groups


def _look_up(
    level: Sequence[Digest],
    derivations: Derivations,
    keys: Mapping[Digest, Digest],
    contents: dict[OutputInput, Digest],
    store: Store,
) -> None:
    """Add to `contents` what is known of the outputs of one level."""
    asked: dict[OutputInput, tuple[Digest, str]] = {}
    for digest in level:
        for output, expected in derivations[digest].outputs:
            name = OutputInput(derivation=digest, output=output)
            if expected is not None:
                contents[name] = expected
            elif digest in keys:
                asked[name] = (keys[digest], output)
    claims = store.contents_of(list(asked.values())) if asked else {}
    for name, key in asked.items():
        if found := claims.get(key, ()):
            where = f"{derivations[name.derivation].name}.{name.output}"
            contents[name] = sole(found, where)


def plan(
    wanted: Sequence[OutputInput],
    derivations: Derivations,
    known: Survey,
    *,
    has_tree: Callable[[Digest], bool],
    mode: Mode = "reuse",
) -> Plan:
    """What is to be done so that the trees of `wanted` are there.

    Args:
        wanted: Outputs of derivations.
        derivations: Those and all they need.
        known: The survey of `wanted`.
        has_tree: Whether a tree is there; asked of those that are needed.
        mode: `check` and `rebuild` build what is there, and so need everything.
    """
    needed: defaultdict[Digest, set[str]] = defaultdict(set)
    for one in wanted:
        needed[one.derivation].add(one.output)
    reuse, build = [], []
    for digest in reversed(known.order):
        if digest not in needed:
            continue
        node = derivations[digest]
        again = mode == "rebuild" or (mode == "check" and not node.is_fixed)
        outputs = [OutputInput(derivation=digest, output=name) for name in needed[digest]]
        if not again and all(
            one in known.contents and has_tree(known.contents[one]) for one in outputs
        ):
            reuse.append(digest)
            continue
        build.append(digest)
        for need in node.needs:
            needed[need.derivation].add(need.output)
    return Plan(
        reuse=tuple(reversed(reuse)),
        build=tuple(reversed(build)),
        needed={digest: frozenset(outputs) for digest, outputs in needed.items()},
    )
