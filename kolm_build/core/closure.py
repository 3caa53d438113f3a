"""Closures: everything reachable from a set, and orders in which needs come first.

With explicit stacks, since a chain of builds may be longer than Python's recursion limit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def closure(roots: Iterable[T], needs: Callable[[T], Iterable[T]]) -> tuple[T, ...]:
    """The roots and everything they need, each once and after all that it needs.

    The order depends on the order of `roots` and of what `needs` gives, and on nothing else.

    Raises:
        ValueError: Something needs itself; a mistake of the caller, since digests cannot form a
            cycle. Use `find_cycle` where names can.
    """
    done: dict[T, None] = {}
    for root in roots:
        _visit(root, needs, done)
    return tuple(done)


def _visit(root: T, needs: Callable[[T], Iterable[T]], done: dict[T, None]) -> None:
    if root in done:
        return
    path: dict[T, Iterator[T]] = {root: iter(needs(root))}
    while path:
        node, rest = next(reversed(path.items()))
        for need in rest:
            if need in path:
                raise ValueError(f"a cycle through {need!r}")
            if need not in done:
                path[need] = iter(needs(need))
                break
        else:
            done[node] = None
            del path[node]


def find_cycle(nodes: Iterable[T], needs: Callable[[T], Iterable[T]]) -> tuple[T, ...]:
    """The first cycle among `nodes`, from a node to the last one before it again, or nothing."""
    done: set[T] = set()
    for start in nodes:
        path: dict[T, Iterator[T]] = {} if start in done else {start: iter(needs(start))}
        while path:
            node, rest = next(reversed(path.items()))
            need = next((need for need in rest if need not in done), None)
            if need is None:
                done.add(node)
                del path[node]
            elif need in path:
                names = list(path)
                return tuple(names[names.index(need) :])
            else:
                path[need] = iter(needs(need))
    return ()
