"""`kolm show`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json, add_project, add_store
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.core.derivation import Derivation
    from kolm_build.core.digest import Digest
    from kolm_build.core.figures import Figure
    from kolm_build.core.tree import Node
    from kolm_build.store.local import LocalStore


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Show a node, a tree or derivation by digest, or an artifact.",
        ("kolm show train-1", "its derivation, content, builders, how its loss went"),
        ("kolm show train-1 --plot loss.svg", "and a picture of its figures at every step"),
        ("kolm show b3:…", "a tree or a derivation in the store"),
        ("kolm show triage.kolm", "members, figures and signatures; checks nothing"),
    )
    parser.add_argument("what", metavar="NODE|DIGEST|FILE.kolm", help="what to show")
    parser.add_argument(
        "--plot", metavar="FILE.svg", help="draw what a training's figures were, at every step"
    )
    add_project(parser)
    add_store(parser)
    add_json(parser, "one JSON object")


def run(args: Namespace, terminal: Terminal) -> int:
    """Show it."""
    figures: tuple[Figure, ...] = ()
    if args.what.endswith(".kolm") or Path(args.what).is_file():
        _check_no_plot(args)
        shown = _artifact(Path(args.what))
    elif args.what.startswith("b3:"):
        _check_no_plot(args)
        shown = _digest(args)
    else:
        shown, figures = _node(args)
    if args.json:
        terminal.give(shown | _figures_value(figures))
        return 0
    for line in (*_lines(told_once(_folded(shown)), ""), *_figures_lines(figures)):
        terminal.say(line)
    if args.plot is not None:
        terminal.tell(f"drawn in {args.plot}")
    return 0


def _check_no_plot(args: Namespace) -> None:
    """Refuse to draw what is no node."""
    from kolm_build.errors import UsageError

    if args.plot is not None:
        raise UsageError(
            "only the figures of a node that trains can be drawn",
            where="--plot",
            expected="a node, such as train-1",
            actual=args.what,
        )


def _figures_value(figures: tuple[Figure, ...]) -> dict[str, object]:
    if not figures:
        return {}
    told = {one.name: one.to_value() for one in figures}
    return {"metrics": {"steps": len(figures[0].values), "figures": told}}


def _figures_lines(figures: tuple[Figure, ...]) -> Iterator[str]:
    """The figures for people, drawn in a line each."""
    from kolm_build.core.plot import told

    if figures:
        steps = len(figures[0].values)
        yield f"metrics: {steps} step{'' if steps == 1 else 's'}"
    wide = max((len(one.name) for one in figures), default=0)
    for one in figures:
        yield f"  {one.name:<{wide}}  {told(one)}"


def _artifact(path: Path) -> dict[str, object]:
    from kolm_build.attest.container import Container
    from kolm_build.core.digest import Blob

    with Container.open(path) as container:
        manifest = container.manifest
        blob = Blob.of(container.manifest_bytes)
        how, adapter = manifest.quantisation, manifest.adapter
        return {
            "name": manifest.name,
            "artifact": str(blob.sha256),
            "manifest_b3": str(blob.b3),
            "size_bytes": container.size,
            "weights": manifest.weights_id,
            "numerics": manifest.numerics,
            "licence": manifest.licence,
            "kscore": dict(manifest.kscore),
            **({} if how is None else {"quantisation": how.to_value()}),
            **({} if adapter is None else {"adapter": adapter.to_value()}),
            "members": {one.path: f"{one.size} {one.sha256}" for one in manifest.members},
            "attestations": list(container.attestations),
        }


def _digest(args: Namespace) -> dict[str, object]:
    from kolm_build.core.digest import Digest
    from kolm_build.errors import MissingObjectError
    from kolm_build.surfaces.opening import open_store

    digest = Digest.parse(args.what)
    with open_store(args) as store:
        if store.has_derivation(digest):
            return _derivation(store.derivation(digest), str)
        if store.has_tree(digest):
            value = store.tree(digest)
            return {
                "tree": str(digest),
                "entries": {name: _entry(node) for name, node in value.entries},
            }
    raise MissingObjectError("neither a tree nor a derivation in the store", file=args.what)


def _entry(node: Node) -> str:
    from kolm_build.core.tree import File, Folder

    if isinstance(node, File):
        return f"{node.size_bytes} {node.b3}{' executable' if node.executable else ''}"
    return f"folder {node.tree}" if isinstance(node, Folder) else f"link to {node.target}"


def _node(args: Namespace) -> tuple[dict[str, object], tuple[Figure, ...]]:
    """What there is to say of a node, and a training's figures; drawn where that is asked for."""
    from kolm_build.surfaces.lookup import Look
    from kolm_build.surfaces.opening import open_store
    from kolm_build.surfaces.project import open_project
    from kolm_build.surfaces.training import check_has_figures, figures_of

    look = Look.at(open_project(args.project, lock=args.lock))
    derivation = look.node(args.what)
    with open_store(args) as store:
        plan = look.plan(store)
        resolved = plan.resolved.get(derivation.digest)
        shown = _derivation(derivation, look.names.__getitem__)
        shown["resolved"] = None if resolved is None else str(resolved)
        shown["outputs"] = {
            output: _claims(resolved, output, store) for output, _ in derivation.outputs
        }
        figures = figures_of(derivation, plan, store)
    if args.plot is not None:
        check_has_figures(derivation, figures)
        _draw(Path(args.plot), derivation.name, figures)
    return shown, figures


def _draw(path: Path, name: str, figures: tuple[Figure, ...]) -> None:
    from kolm_build.core.plot import svg
    from kolm_build.surfaces.files import write_whole

    write_whole(path, svg(name, figures).encode())


def _claims(resolved: Digest | None, output: str, store: LocalStore) -> list[dict[str, object]]:
    """What is claimed of an output, and the circumstances of each claim."""
    if resolved is None:
        return []
    return [
        {"content": str(one.realisation.content), "circumstances": dict(one.circumstances)}
        for one in store.realisations(resolved, output)
    ]


def _derivation(derivation: Derivation, name_of: Callable[[Digest], str]) -> dict[str, object]:
    from kolm_build.core.derivation import ContentInput

    return {
        "node": derivation.name,
        "derivation": str(derivation.digest),
        "step": derivation.step,
        "code": str(derivation.code),
        "environment": str(derivation.environment) if derivation.environment else None,
        "numerics": derivation.numerics.to_value(),
        "platform": str(derivation.platform) if derivation.platform else None,
        "params": dict(derivation.params),
        "inputs": {
            role: str(value.content)
            if isinstance(value, ContentInput)
            else f"{name_of(value.derivation)}.{value.output}"
            for role, value in derivation.inputs
        },
        "outputs": {
            output: None if expected is None else str(expected)
            for output, expected in derivation.outputs
        },
    }


def _folded(shown: Mapping[str, object]) -> Mapping[str, object]:
    """An artifact with its deep folders told in one line each; `--json` has every member."""
    members = shown.get("members")
    if not isinstance(members, Mapping):
        return shown
    folded: dict[str, object] = {}
    deep: dict[str, list[int]] = {}
    for path, told in members.items():
        parts = path.split("/")
        if len(parts) <= 2:
            folded[path] = told
        else:
            deep.setdefault("/".join(parts[:2]) + "/", []).append(int(told.split()[0]))
    folded |= {path: f"{sum(sizes)} in {len(sizes)} files" for path, sizes in deep.items()}
    return {**shown, "members": dict(sorted(folded.items()))}


def told_once(shown: Mapping[str, object]) -> Mapping[str, object]:
    """A node with the circumstances that all its outputs share behind them; `--json` repeats."""
    outputs = shown.get("outputs")
    if not isinstance(outputs, Mapping) or len(outputs) < 2:
        return shown
    claims = list(outputs.values())
    if not all(isinstance(one, list) and len(one) == 1 for one in claims):
        return shown
    first = claims[0][0].get("circumstances")
    if not all(one[0].get("circumstances") == first for one in claims):
        return shown
    contents = {output: one[0]["content"] for output, one in outputs.items()}
    return {**shown, "outputs": contents, "circumstances": first}


def _lines(value: Mapping[str, object], indent: str) -> Iterator[str]:
    """A JSON object for people: one line a value."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield f"{indent}{name}:"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            for each in item:
                yield f"{indent}{name}:"
                yield from _lines(each, indent + "  ")
        elif isinstance(item, list):
            yield f"{indent}{name}: {', '.join(map(str, item)) or 'none'}"
        else:
            yield f"{indent}{name}: {'none' if item is None else _one_line(item)}"


def _one_line(item: object) -> str:
    return str(item).replace("\n", "\\n")
