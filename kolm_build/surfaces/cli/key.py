"""`kolm key`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from kolm_build.surfaces.cli.options import add_json, add_passphrase
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

ROLES = ("builder", "evaluator", "approver", "log")


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Make, show and trust Ed25519 keys. An artifact is signed by the builder's key and\n"
        "trusted by what the reader's own trust file says, never by a key inside it.",
        ("kolm key new", "make ~/.config/kolm/key.pem, asking for a passphrase"),
        ("kolm key show", "print the public key"),
        ("kolm key trust ci.pub --name ci", "trust what that key signs"),
    )
    below = parser.actions()
    new = below.add_parser("new", help="make a key")
    new.tell_of(
        "Make a private key, encrypted under a passphrase, and its public half in FILE.pub.",
        ("kolm key new", ""),
        ("kolm key new ci.pem --passphrase-file /run/secrets/pass", ""),
    )
    new.add_argument("file", metavar="FILE", nargs="?", type=Path, help="the new private key")
    new.add_argument("--unencrypted", action="store_true", help="write it without a passphrase")
    add_passphrase(new)
    show = below.add_parser("show", help="print a public key")
    show.tell_of("Print a public key and its id.", ("kolm key show ci.pem.pub", ""))
    show.add_argument("file", metavar="FILE", nargs="?", type=Path, help="a public or private key")
    add_passphrase(show)
    add_json(show, "one JSON object")
    trust = below.add_parser("trust", help="add a key to the trust file")
    trust.tell_of(
        "Add a public key to the trust file, as a principal that may sign.",
        ("kolm key trust ed25519:0f…e1 --name ci", ""),
        ("kolm key trust anna.pub --name anna --role approver", ""),
    )
    trust.add_argument("key", metavar="KEY", help="ed25519:… or a file that holds a public key")
    trust.add_argument("--name", required=True, help="the principal's name")
    trust.add_argument(
        "--role", action="append", choices=ROLES, help="what it may sign (default: builder)"
    )
    trust.add_argument(
        "--organisation", metavar="NAME", help="whom it belongs to (in a trust file of version 2)"
    )
    trust.add_argument(
        "--trust", metavar="FILE", type=Path, help="default: ~/.config/kolm/trust.toml"
    )


def run(args: Namespace, terminal: Terminal) -> int:
    """Do what `args.action` says."""
    return {"new": _new, "show": _show, "trust": _trust}[args.action](args, terminal)


def _new(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.attest.keys import create
    from kolm_build.surfaces.files import write_new
    from kolm_build.surfaces.places import default_key
    from kolm_build.surfaces.signing import new_passphrase, public_file

    path = args.file or Path(default_key())
    if args.file is None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    passphrase = None if args.unencrypted else new_passphrase(args.passphrase_file)
    public = create(path, passphrase=passphrase, unencrypted=args.unencrypted)
    write_new(public_file(path), f"{public}\n".encode())
    terminal.say(str(public))
    terminal.tell(f"private key in {path}, public key in {public_file(path)}")
    return 0


def _show(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.errors import InvalidRecordError
    from kolm_build.surfaces.places import default_key
    from kolm_build.surfaces.signing import open_key, read_public

    path = args.file or Path(default_key())
    try:
        public = read_public(path)
    except InvalidRecordError:
        public = open_key(path, args.passphrase_file).public
    if args.json:
        terminal.give({"key": str(public), "keyid": public.keyid})
    else:
        terminal.say(f"{public}\nkeyid {public.keyid}")
    return 0


def _trust(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.attest.keys import PREFIX, PublicKey
    from kolm_build.attest.trust import parse_trust
    from kolm_build.surfaces.files import write_whole
    from kolm_build.surfaces.places import default_trust
    from kolm_build.surfaces.signing import read_public

    text = args.key
    key = PublicKey.parse(text) if text.startswith(PREFIX) else read_public(Path(text))
    path = args.trust or Path(default_trust())
    if path.exists():
        before = path.read_bytes()
        parse_trust(before, str(path))
    else:
        version = 1 if args.organisation is None else 2
        before = f"version = {version}\n\n[threshold]\nbuilder = 1\n".encode()
    after = before + _principal(args, key).encode()
    parse_trust(after, str(path))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, after)
    terminal.say(f"{args.name} is trusted in {path}")
    return 0


def _principal(args: Namespace, key: object) -> str:
    listed = ", ".join(f'"{role}"' for role in args.role or ["builder"])
    lines = ["", "[[principal]]", f"name = {_quoted(args.name)}"]
    if args.organisation is not None:
        lines.append(f"organisation = {_quoted(args.organisation)}")
    return "\n".join([*lines, f"roles = [{listed}]", f'keys = ["{key}"]', ""])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
