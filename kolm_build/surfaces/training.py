"""What a training's figures were, of a node that was built here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.figures import Figure, read_figures
from kolm_build.core.tree import File
from kolm_build.errors import MissingObjectError, UsageError

if TYPE_CHECKING:
    from kolm_build.core.plan import Plan
    from kolm_build.store.local import LocalStore

OUTPUT, TABLE = "metrics", "metrics.csv"


def figures_of(derivation: Derivation, plan: Plan, store: LocalStore) -> tuple[Figure, ...]:
    """The figures of the training `derivation`; none where it is no training or was never built.

    Args:
        derivation: A node's.
        plan: What is known of the outputs of all nodes.
        store: Where they are.

    Raises:
        InvalidRecordError: What is there is no table of figures.
    """
    content = _content(derivation, plan)
    if content is None or not store.has_tree(content):
        return ()
    found = dict(store.tree(content).entries).get(TABLE)
    return read_figures(store.read_blob(found.b3)) if isinstance(found, File) else ()


def check_has_figures(derivation: Derivation, figures: tuple[Figure, ...]) -> None:
    """Refuse a node without figures to be drawn.

    Raises:
        UsageError: It is no training.
        MissingObjectError: It was never built.
    """
    if figures:
        return
    if OUTPUT not in dict(derivation.outputs):
        raise UsageError(
            "this node trains nothing, so there are no figures to draw",
            where=derivation.name,
            expected="a node train-K",
        )
    raise MissingObjectError(
        "it was never built here", where=derivation.name, advice="`kolm build` builds it."
    )


def _content(derivation: Derivation, plan: Plan) -> Digest | None:
    output = OutputInput(derivation=derivation.digest, output=OUTPUT)
    return plan.contents.get(output)
