"""`kolm claim`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_passphrase, add_project, add_store
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from kolm_build.attest.keys import SigningKey
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.hearing import Claimed


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Say more of the claims in the store: commit to them before they are shown, countersign\n"
        "that they were there by now, and keep what others countersigned.",
        ("kolm claim commit -o commitments", "after `kolm rebuild --attest`, before `kolm copy`"),
        ("kolm claim witness --key log.pem", "as a log: these claims were here by now"),
    )
    below = parser.actions()
    commit = below.add_parser("commit", help="commit to your claims without telling them")
    commit.tell_of(
        "Write a commitment to each of your claims: a file that names neither content nor nonce.\n"
        "Publish it, have a log countersign it, and publish the claims when others have done\n"
        "so too: then they prove that you did not copy what others had published.",
        ("kolm claim commit -o commitments", "the recipe's targets"),
        ("kolm claim commit -o commitments train-1", "one node"),
    )
    commit.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="where to")
    _add_common(commit)
    witness = below.add_parser("witness", help="countersign claims or a commitment as a log")
    witness.tell_of(
        "Say, as a log, that claims or a commitment were there at a time. Who trusts your key\n"
        "for that judges by this time whether a key had expired or was revoked.",
        ("kolm claim witness --key log.pem", "the claims on the targets"),
        ("kolm claim witness --key log.pem --at s3://models/cache", "those that are there"),
        ("kolm claim witness --key log.pem --file package.out.01….commitment.json", ""),
    )
    witness.add_argument(
        "--file", metavar="FILE", type=Path, action="append", default=[], help="a commitment"
    )
    witness.add_argument(
        "--at", metavar="URL", help="the claims at this substituter instead of the store's"
    )
    witness.add_argument(
        "--time", metavar="TIME", help="YYYY-MM-DDTHH:MM:SSZ (default: what the clock says)"
    )
    _add_common(witness)
    add = below.add_parser("add", help="keep what a log countersigned beside your claims")
    add.tell_of(
        "Keep a log's countersignatures beside the claims in the store, so that `kolm copy --to`\n"
        "publishes them with these.",
        ("kolm claim add --file package.out.01….witness.json", ""),
    )
    add.add_argument(
        "--file", metavar="FILE", type=Path, action="append", required=True, help="it (repeatable)"
    )
    _add_targets(add)


def _add_common(parser: Parser) -> None:
    parser.add_argument(
        "--key", metavar="FILE", help="the signing key (default: ~/.config/kolm/key.pem)"
    )
    add_passphrase(parser)
    _add_targets(parser)


def _add_targets(parser: Parser) -> None:
    parser.add_argument(
        "targets",
        metavar="TARGET",
        nargs="*",
        help="a node or node.output (default: the recipe's targets)",
    )
    add_project(parser)
    add_store(parser)


def run(args: Namespace, terminal: Terminal) -> int:
    """Do what `args.action` says."""
    return {"commit": _commit, "witness": _witness, "add": _add}[args.action](args, terminal)


def _commit(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.surfaces.claiming import commit_to
    from kolm_build.surfaces.opening import open_store

    key = _key(args)
    with open_store(args) as store:
        for path in commit_to(_heard(args, store, terminal), args.output, key=key, store=store):
            terminal.say(str(path))
    return 0


def _witness(args: Namespace, terminal: Terminal) -> int:
    from contextlib import closing

    from kolm_build.core.quorum import parse_time
    from kolm_build.store.remote.place import Limits
    from kolm_build.surfaces.addresses import place_at
    from kolm_build.surfaces.claiming import now, witness_at, witness_claims, witness_file
    from kolm_build.surfaces.opening import open_store

    key, time = _key(args), parse_time(args.time or now())
    for file in args.file:
        terminal.say(str(witness_file(file, time=time, key=key)))
    if args.file and not args.targets:
        return 0
    with open_store(args) as store:
        heard = _heard(args, store, terminal, [args.at] if args.at else [])
        if args.at:
            with closing(place_at(args.at, Limits())) as place:
                count = witness_at(heard, place, time=time, key=key, store=store)
        else:
            count = witness_claims(heard, time=time, key=key, store=store)
    terminal.say(f"{count} claims were there at {time}")
    return 0


def _add(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.surfaces.claiming import add_evidence
    from kolm_build.surfaces.opening import open_store

    with open_store(args) as store:
        count = add_evidence(_heard(args, store, terminal), args.file, store=store)
    terminal.say(f"kept beside {count} claim{'' if count == 1 else 's'}")
    return 0


def _key(args: Namespace) -> SigningKey:
    from kolm_build.surfaces.places import default_key
    from kolm_build.surfaces.signing import open_key

    return open_key(Path(args.key or default_key()), args.passphrase_file)


def _heard(
    args: Namespace, store: LocalStore, terminal: Terminal, urls: Sequence[str] = ()
) -> list[Claimed]:
    """What the store, and the substituters at `urls`, claim of the targets."""
    from kolm_build.surfaces.copying import wanted_outputs
    from kolm_build.surfaces.listening import Troubles, hear
    from kolm_build.surfaces.lookup import Look
    from kolm_build.surfaces.project import open_project

    look = Look.at(open_project(args.project, lock=args.lock))
    wanted = wanted_outputs(look.instance, args.targets, closure_too=False).values()
    told = Troubles(terminal, json=False)
    heard = hear(look.instance, wanted, urls, store=store, trust=None, on_trouble=told)
    return [one for one in heard if one.output in wanted and one.fixed is None]
