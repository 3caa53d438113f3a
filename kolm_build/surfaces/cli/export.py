"""`kolm export`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json, add_project, add_store
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.cli.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kolm_build.core.kolmpack import Part
    from kolm_build.store.packer import Packing, Share
    from kolm_build.surfaces.building import Prepared


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Pack all that a rebuild needs into one file: outputs, derivations, everything that was\n"
        "fetched, local inputs, the steps' code, claims and logs, recipe and lock, your trust\n"
        "file, and the environments that the store holds. The same store and lock give the same\n"
        "bytes. Another machine takes it in by `kolm import`, without a network.",
        ("kolm export --rebuildable -o triage.kolmpack", "the recipe's targets"),
        ("kolm export --rebuildable train-1 -o train.kolmpack", "one node, and what it needs"),
        ("kolm export --without-outputs", "what builds it, and nothing that was built"),
        ("kolm export --thin --have first.kolmpack", "what the first delivery did not hold"),
    )
    parser.add_argument("targets", metavar="TARGET", nargs="*", help="a node or node.output")
    parser.add_argument(
        "--rebuildable",
        action="store_true",
        help="with all that a rebuild needs: so far the only kind, and the default",
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="default: NAME.kolmpack")
    parser.add_argument(
        "--without-outputs", action="store_true", help="leave out what can be built"
    )
    parser.add_argument(
        "--thin", action="store_true", help="leave out what the receiver has: see --have"
    )
    parser.add_argument(
        "--have", metavar="OTHER", type=Path, help="an earlier pack, or a store, of the receiver"
    )
    parser.add_argument(
        "--artifact",
        metavar="FILE",
        type=Path,
        help="whose signatures travel (default: the project's own artifact)",
    )
    parser.add_argument(
        "--trust",
        metavar="FILE",
        type=Path,
        help="the trust roots that travel (default: your trust file, if you have one)",
    )
    add_project(parser)
    add_store(parser)
    add_json(parser, "one JSON object with the pack's id and sizes")


def run(args: Namespace, terminal: Terminal) -> int:
    """Write the pack."""
    from kolm_build.errors import UsageError
    from kolm_build.surfaces.building import prepare
    from kolm_build.surfaces.opening import open_store
    from kolm_build.surfaces.packing import attested, have_of, wanted_of, write
    from kolm_build.surfaces.percent import shown_percent
    from kolm_build.surfaces.project import open_project

    if args.thin != (args.have is not None):
        raise UsageError(
            "--thin and --have belong together",
            file="kolm export",
            advice="--thin --have OTHER leaves out what is in OTHER.",
        )
    project = open_project(args.project, lock=args.lock)
    have = have_of(args.have) if args.thin else None
    with open_store(args) as store:
        prepared = prepare(project, store)
        targets = prepared.wanted(args.targets)
        wanted = wanted_of(
            prepared,
            targets,
            store,
            trust=_trust(args.trust),
            artifact=attested(prepared, targets, store, args.artifact),
            without_outputs=args.without_outputs,
        )
        packing = store.plan_pack(wanted, have=have)
        dest = args.output or Path(f"{project.recipe.name}.kolmpack")
        with shown_percent(terminal, packing.head.size_bytes, "packed") as on_bytes:
            write(packing, dest, store, on_bytes)
        _tell(packing, prepared, dest, args, terminal)
    return 0


def _trust(given: Path | None) -> Path | None:
    from kolm_build.surfaces.places import default_trust

    path = given or Path(default_trust())
    return path if given is not None or path.is_file() else None


def _tell(
    packing: Packing, prepared: Prepared, dest: Path, args: Namespace, terminal: Terminal
) -> None:
    head = packing.head
    named = {made.environment for made in packing.derivations.values()} - {None}
    carried = {environment for environment, _ in head.environments}
    size_bytes = dest.stat().st_size
    if args.json:
        terminal.give(
            {
                "bytes": size_bytes,
                "environments": [
                    {"carried": one in carried, "environment": str(one)}
                    for one in sorted(named, key=str)
                ],
                "left_out": len(head.left_out),
                "needs": len(head.needs),
                "pack": str(packing.id),
                "parts": parts_value(packing.shares),
                "path": str(dest),
                "targets": {
                    one.label: None if one.content is None else str(one.content)
                    for one in head.targets
                },
            }
        )
        return
    tell_parts(packing.shares, terminal)
    from kolm_build.surfaces.cli.store import size

    terminal.say(f"{size(size_bytes):>10}  {dest}  {packing.id}", "green")
    if head.left_out:
        terminal.tell(f"{len(head.left_out)} outputs are left out: a rebuild makes them")
    if head.needs:
        terminal.tell(f"thin: {len(head.needs)} objects must be in the receiver's store")
    if named - carried:
        count = len(prepared.lock.environment.distributions)
        terminal.tell(
            f"the environment is not in the store: the receiver needs python"
            f" {prepared.lock.environment.python} and the {count} locked distributions installed",
            "yellow" if terminal.err_colour else "",
        )


def parts_value(shares: Mapping[Part, Share]) -> dict[str, object]:
    """The shares of a pack as a JSON object."""
    return {
        str(part): {"bytes": share.size_bytes, "objects": share.objects}
        for part, share in shares.items()
    }


def tell_parts(shares: Mapping[Part, Share], terminal: Terminal) -> None:
    """Print the shares of a pack, those that are not empty."""
    from kolm_build.surfaces.cli.store import size

    for part, share in shares.items():
        if share.objects:
            terminal.say(f"{size(share.size_bytes):>10}  {part}, {share.objects} objects")
