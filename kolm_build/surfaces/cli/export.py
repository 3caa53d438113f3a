"""`kolm export`."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.core.export_formats import FORMATS
from kolm_build.surfaces.cli.options import (
    add_building,
    add_json,
    add_project,
    add_store,
    build_options,
)
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kolm_build.core.export_formats import Format
    from kolm_build.core.kolmpack import Part
    from kolm_build.store.packer import Packing, Share
    from kolm_build.surfaces.building import Prepared


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "With --format: write the model of an artifact as other programs load it. The export\n"
        "names the artifact in its metadata; the same artifact gives the same bytes.\n"
        "\n"
        "Without it: pack all that a rebuild needs into one file: outputs, derivations,\n"
        "everything that was fetched, local inputs, the steps' code, claims and logs, recipe and\n"
        "lock, your trust file, and the environments that the store holds. The same store and\n"
        "lock give the same bytes. Another machine takes it in by `kolm import`, without a\n"
        "network.",
        ("kolm export triage.kolm --format gguf-q8_0", "for llama.cpp and Ollama"),
        ("kolm export triage.kolm --format safetensors -o model", "a Hugging Face folder"),
        ("kolm export triage.kolm --format modelpack", "an OCI image layout, for registries"),
        ("kolm export --rebuildable -o triage.kolmpack", "the recipe's targets"),
        ("kolm export --rebuildable train-1 -o train.kolmpack", "one node, and what it needs"),
        ("kolm export --without-outputs", "what builds it, and nothing that was built"),
        ("kolm export --thin --have first.kolmpack", "what the first delivery did not hold"),
    )
    parser.add_argument(
        "targets",
        metavar="TARGET",
        nargs="*",
        help="a node or node.output; with --format, the artifact",
    )
    parser.add_argument(
        "--format", choices=tuple(FORMATS), metavar="FORMAT", help=", ".join(FORMATS)
    )
    parser.add_argument(
        "--dequantise",
        nargs="?",
        const="fp32",
        choices=("bf16", "fp16", "fp32"),
        metavar="DTYPE",
        help="safetensors as plain numbers of one dtype: bf16, fp16 or fp32 (default: fp32)",
    )
    parser.add_argument(
        "--rebuildable",
        action="store_true",
        help="with all that a rebuild needs: the default without --format",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="default: NAME and a suffix"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace what is there; it is refused otherwise"
    )
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
    add_building(parser)
    add_json(parser, "one JSON object: what was written, its digest or id, its size")


def run(args: Namespace, terminal: Terminal) -> int:
    """Write the export or the pack."""
    if args.format is not None:
        return _run_format(args, terminal)
    if args.dequantise is not None:
        from kolm_build.errors import UsageError

        raise UsageError("--dequantise needs --format safetensors", file="kolm export")
    return _run_pack(args, terminal)


def _run_format(args: Namespace, terminal: Terminal) -> int:
    """Write the export."""
    from kolm_build.surfaces.cli.store import size
    from kolm_build.surfaces.exporting import export
    from kolm_build.surfaces.opening import kept_folders, open_store
    from kolm_build.surfaces.progress import shown_events

    artifact, form = _artifact(args), _format(args)
    options = build_options(args)
    with open_store(args) as store, shown_events(terminal, json=False) as on_event:
        made = export(
            artifact, form, args.output, force=args.force, kept=[*kept_folders(args, store)],
            store=store, options=options, on_event=on_event,
        )  # fmt: skip
    if args.json:
        terminal.give({"format": args.format, **made.to_value()})
    else:
        terminal.say(f"{size(made.size_bytes):>10}  {made.path}  {made.content}", "green")
        terminal.tell(f"of the artifact {made.artifact_id}", "dim")
    return 0


def _artifact(args: Namespace) -> Path:
    """The artifact that is exported.

    Raises:
        UsageError: None is named, or more than one, or an option does not go with --format.
    """
    from kolm_build.errors import UsageError

    for name in _PACK_ONLY:
        if getattr(args, name):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} and --format do not go together", file="kolm export")
    if len(args.targets) != 1:
        raise UsageError(
            "--format needs one artifact",
            file="kolm export",
            expected="kolm export FILE.kolm --format FORMAT",
            actual=" ".join(args.targets) or "none",
        )
    path = Path(args.targets[0])
    if not path.exists():
        raise UsageError("no such file", file=str(path))
    return path


_PACK_ONLY = ("rebuildable", "without_outputs", "thin", "have", "artifact", "trust")


def _format(args: Namespace) -> Format:
    from dataclasses import replace

    from kolm_build.errors import UsageError

    form = FORMATS[args.format]
    if args.dequantise is None:
        return form
    if args.format != "safetensors":
        raise UsageError(
            "--dequantise needs --format safetensors",
            file="kolm export",
            actual=args.format,
            advice="A GGUF file is always made of plain numbers.",
        )
    return replace(form, params=(("dtype", args.dequantise),))


def _run_pack(args: Namespace, terminal: Terminal) -> int:
    """Write the pack."""
    from kolm_build.errors import UsageError
    from kolm_build.surfaces.building import prepare
    from kolm_build.surfaces.opening import kept_folders, open_store
    from kolm_build.surfaces.packing import attested, have_of, wanted_of, write
    from kolm_build.surfaces.percent import shown_percent
    from kolm_build.surfaces.placing import check_place, placed
    from kolm_build.surfaces.project import open_project

    if args.thin != (args.have is not None):
        raise UsageError(
            "--thin and --have belong together",
            file="kolm export",
            advice="--thin --have OTHER leaves out what is in OTHER.",
        )
    for target in args.targets:
        if target.endswith(".kolm"):
            raise UsageError(
                "a pack is made of the recipe's nodes, not of an artifact",
                file="kolm export",
                actual=target,
                advice="--format FORMAT writes its model; its signatures travel by --artifact.",
            )
    project = open_project(args.project, lock=args.lock)
    have = have_of(args.have) if args.thin else None
    dest = args.output or Path(f"{project.recipe.name}.kolmpack")
    with open_store(args) as store:
        check = partial(check_place, dest, force=args.force, kept=[*kept_folders(args, store)])
        check()
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
        size_bytes = packing.head.size_bytes
        with placed(dest, check) as made, shown_percent(terminal, size_bytes, "packed") as on_bytes:
            write(packing, made, store, on_bytes)
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
            f" {prepared.lock.environment.python} and the {count} locked distributions installed"
            " (`kolm env add` before the export puts it into the pack)",
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
