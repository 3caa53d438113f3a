"""`kolm store`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json, add_places, add_store
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.store.local import LocalStore
    from kolm_build.store.verify import Report


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Look after the store. What a root reaches is kept: the last build of every project is\n"
        "one. Derivations, claims and logs are never dropped.",
        ("kolm store gc --dry-run", "what would be freed"),
        ("kolm store fsck --repair", "re-hash everything, put right what can be"),
        ("kolm store du", "bytes of every root, and on disk"),
        ("kolm store roots --remove NAME", "let the next gc have it"),
    )
    below = parser.actions()
    collect = below.add_parser("gc", help="delete what no root reaches")
    collect.tell_of(
        "Delete every object that no root reaches, beside running builds.",
        ("kolm store gc", ""),
        ("kolm store gc --dry-run", "what would be freed"),
    )
    collect.add_argument("--dry-run", action="store_true", help="delete nothing")
    check = below.add_parser("fsck", help="re-hash every object")
    check.tell_of(
        "Re-hash every object and compare the index with the files.",
        ("kolm store fsck", ""),
        ("kolm store fsck --repair", "drop what is corrupt; the next build makes it anew"),
        ("kolm store fsck --repair --substituter URL", "fetch it again where somebody has it"),
    )
    check.add_argument("--repair", action="store_true", help="put right what can be")
    add_places(check)
    check.add_argument(
        "--deep", action="store_true", help="check SHA-256 and files kept in parts, too"
    )
    check.add_argument(
        "--rebuild-index",
        action="store_true",
        help="first make the index again from the objects; no other kolm may run",
    )
    roots = below.add_parser("roots", help="list what is kept")
    roots.tell_of(
        "List the roots, or remove one.",
        ("kolm store roots", ""),
        ("kolm store roots --remove NAME", "let the next gc have it"),
    )
    roots.add_argument("--remove", metavar="NAME", help="forget this root")
    usage = below.add_parser("du", help="measure")
    usage.tell_of(
        "Print the bytes that every root stands for, and those on disk.", ("kolm store du", "")
    )
    for action in (collect, check, roots, usage):
        add_store(action)
        add_json(action, "one JSON object")


def run(args: Namespace, terminal: Terminal) -> int:
    """Do what `args.action` says."""
    from kolm_build.surfaces.opening import open_store

    _check_is_there(args)
    if getattr(args, "rebuild_index", False):
        _rebuild_index(args, terminal)
    with open_store(args) as store:
        return {"gc": _gc, "fsck": _fsck, "roots": _roots, "du": _du}[args.action](
            args, terminal, store
        )


def _check_is_there(args: Namespace) -> None:
    """Refuse to look after a store that nobody made: opening one would make it."""
    from kolm_build.errors import UsageError
    from kolm_build.surfaces.places import store_root

    root = Path(store_root(args.store, Path.cwd()))
    if not (root / "format").exists():
        raise UsageError(
            "there is no store here",
            file=str(root),
            advice="A build makes it; --store DIR names another.",
        )


def _gc(args: Namespace, terminal: Terminal, store: LocalStore) -> int:
    from datetime import UTC, datetime

    plan = store.collect(dry_run=args.dry_run, today=datetime.now(UTC).date())
    if args.json:
        terminal.give(
            {
                "dead": len(plan.dead),
                "dry_run": args.dry_run,
                "freed_bytes": plan.freed_bytes,
                "live": len(plan.live),
            }
        )
    else:
        verb = "would free" if args.dry_run else "freed"
        terminal.say(f"{verb} {size(plan.freed_bytes)} in {len(plan.dead)} objects")
    return 0


def _rebuild_index(args: Namespace, terminal: Terminal) -> None:
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.places import store_root

    held = LocalStore.rebuild_index(Path(store_root(args.store, Path.cwd())))
    terminal.tell(f"the index holds {held} objects again")


def _check_usage(args: Namespace) -> None:
    from kolm_build.errors import UsageError

    if args.substituter and not args.repair:
        raise UsageError("a substituter is asked only with --repair", file="--substituter")


def _repaired(args: Namespace, terminal: Terminal, store: LocalStore) -> Report:
    """The store, checked and put right, with what substituters have where there are any."""
    from kolm_build.store.remote.mend import mend
    from kolm_build.surfaces.addresses import addresses
    from kolm_build.surfaces.progress import trouble_lines
    from kolm_build.surfaces.substituting import open_substitutes

    urls = addresses(args.substituter, offline=False, terminal=terminal)
    opened = open_substitutes(urls, store, trust=None, on_event=trouble_lines(terminal))
    with opened as those:
        if those is None:
            return store.fsck(repair=True, deep=args.deep)
        mended = mend(store, those, deep=args.deep, on_bytes=lambda _done, _total: None)
    lost = f", {len(mended.lost)} trees nobody has" if mended.lost else ""
    terminal.tell(f"{size(mended.came_bytes)} fetched{lost}", "dim")
    return mended.report


def _fsck(args: Namespace, terminal: Terminal, store: LocalStore) -> int:
    from kolm_build.errors import Exit

    _check_usage(args)
    report = _repaired(args, terminal, store) if args.repair else store.fsck(deep=args.deep)
    if args.json:
        findings = [
            {
                "actual": one.actual,
                "path": one.path,
                "repaired": one.repaired,
                "trouble": str(one.trouble),
            }
            for one in report.findings
        ]
        terminal.give(
            {
                "bytes_hashed": report.bytes_hashed,
                "clean": report.is_clean,
                "findings": findings,
                "litter": report.litter,
                "objects": report.objects,
            }
        )
    else:
        for one in report.findings:
            done = f" ({one.repaired})" if one.repaired else ""
            terminal.say(f"{one.path}: {one.trouble}{done}", "green" if one.repaired else "red")
        verdict = "clean" if report.is_clean else f"{len(report.findings)} findings"
        terminal.say(f"{report.objects} objects, {size(report.bytes_hashed)}: {verdict}")
    left = [one for one in report.findings if one.repaired is None]
    if left and not args.json:
        terminal.tell(
            "`kolm store fsck --repair` puts right what can be; the next build makes the rest anew"
        )
    return int(Exit.STORE) if left else 0


def _roots(args: Namespace, terminal: Terminal, store: LocalStore) -> int:
    from kolm_build.errors import UsageError

    if args.remove is not None:
        if args.remove not in {root.name for root in store.roots()}:
            raise UsageError("there is no such root", file=args.remove)
        store.remove_root(args.remove)
    for root in store.roots():
        if args.json:
            terminal.give(
                {
                    "derivations": [str(one) for one in root.derivations],
                    "expires": root.expires.isoformat() if root.expires else None,
                    "name": root.name,
                    "path": root.path,
                    "trees": [str(one) for one in root.trees],
                }
            )
        else:
            until = f" until {root.expires.isoformat()}" if root.expires else ""
            terminal.say(f"{root.name}  {root.path or ''}{until}".rstrip())
    return 0


def _du(args: Namespace, terminal: Terminal, store: LocalStore) -> int:
    usage = store.usage()
    if args.json:
        roots = [
            {
                "disk_bytes": root.disk_bytes,
                "logical_bytes": root.logical_bytes,
                "name": root.name,
                "own_bytes": root.own_bytes,
            }
            for root in usage.roots
        ]
        terminal.give(
            {
                "disk_bytes": usage.disk_bytes,
                "logical_bytes": usage.logical_bytes,
                "objects": usage.objects,
                "roots": roots,
            }
        )
        return 0
    terminal.say(f"{'files':>10} {'on disk':>10} {'alone':>10}  root")
    for root in usage.roots:
        figures = (root.logical_bytes, root.disk_bytes, root.own_bytes)
        terminal.say(" ".join(f"{size(figure):>10}" for figure in figures) + f"  {root.name}")
    total = (usage.logical_bytes, usage.disk_bytes)
    share = f"{usage.disk_bytes / usage.logical_bytes:.0%}" if usage.logical_bytes else "-"
    shown = " ".join(f"{size(figure):>10}" for figure in total)
    terminal.say(f"{shown} {share:>10}  all {usage.objects} objects")
    return 0


def size(count_bytes: int) -> str:
    """Bytes for people: ``512 B``, ``3.1 MB``, ``1.2 GB``."""
    number, units = float(count_bytes), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if number < 1000 or unit == units[-1]:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError("unreachable")
