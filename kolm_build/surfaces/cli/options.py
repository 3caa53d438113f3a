"""Options that several commands share, declared once so that they mean the same everywhere.

Paths stay text: a build with nothing to do ends sooner than `pathlib` is imported.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace

from kolm_build.surfaces.cli.parser import Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kolm_build.surfaces.building import Options

_UNITS = {"M": 20, "G": 30, "T": 40}


def add_project(parser: Parser) -> None:
    """``-C DIR``: where the recipe is."""
    parser.add_argument(
        "-C",
        "--project",
        metavar="DIR",
        help="folder of kolm.toml (default: the nearest one upwards)",
    )
    add_lock(parser)


def add_lock(parser: Parser) -> None:
    """``--lock FILE``."""
    parser.add_argument(
        "--lock", metavar="FILE", help="the lock (default: kolm.lock in that folder)"
    )


def add_store(parser: Parser) -> None:
    """``--store DIR``."""
    parser.add_argument(
        "--store",
        metavar="DIR",
        help="the store (default: $KOLM_STORE, the checkout's store/, ~/.local/share/kolm/store)",
    )


def add_environment_source(parser: Parser) -> None:
    """Where an environment is: another interpreter's, or a list of wheels."""
    parser.add_argument(
        "--python",
        metavar="PROGRAM",
        help="the interpreter whose distributions are meant, such as old/bin/python"
        " (default: the one that runs kolm)",
    )
    parser.add_argument(
        "--wheels",
        metavar="FILE",
        help="a list of wheels with hashes in place of what is installed: pylock.toml, or"
        " requirements for pip's --require-hashes",
    )
    parser.add_argument(
        "--find-links",
        metavar="DIR",
        help="a folder to look for the wheels in, before pip fetches them",
    )


def add_json(parser: Parser, shape: str) -> None:
    """``--json``; `shape` says what comes out."""
    parser.add_argument("--json", action="store_true", help=shape)


def add_building(parser: Parser) -> None:
    """What decides how steps run, none of which is in any hash."""
    parser.add_argument(
        "--jobs", "-j", metavar="N", type=positive, default=1, help="steps at once (default: 1)"
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=positive,
        help="threads of a step in portable-1, which change no byte (default: all processors)",
    )
    parser.add_argument(
        "--sandbox",
        choices=("require", "none"),
        default="require",
        help="'none' runs steps openly: the result is tainted and never signed",
    )
    parser.add_argument(
        "--step-memory",
        metavar="SIZE",
        type=size_bytes,
        help="memory of a step, such as 8G; 1G is the least with a model (default: 15/16 of what"
        " there is)",
    )
    parser.add_argument(
        "--step-disk",
        metavar="SIZE",
        type=size_bytes,
        help="what a step may write, such as 20G (default: half of what is free)",
    )
    parser.add_argument(
        "--environment",
        choices=("any", "stored"),
        default="any",
        help="'any': what is installed, if it is what is locked, else what the store holds;"
        " 'stored': what the store holds, with the system's libraries that came with it",
    )
    parser.add_argument(
        "--offline", action="store_true", help="never touch the network; use what is in the store"
    )
    parser.add_argument(
        "--keep-failed", action="store_true", help="keep the folder of a step that failed"
    )


def build_options(args: Namespace) -> Options:
    """How to build, as `add_building` asked."""
    from kolm_build.surfaces.building import Options

    return Options(
        jobs=args.jobs,
        threads=args.threads,
        sandbox=args.sandbox,
        offline=args.offline,
        keep_failed=args.keep_failed,
        environment=args.environment,
        step_memory_bytes=args.step_memory,
        step_disk_bytes=args.step_disk,
    )


def add_target(parser: Parser, verdict: str) -> None:
    """``--target``: the device that the model is for; `verdict` says what comes of it."""
    parser.add_argument(
        "--target",
        metavar="NAME[:MEMORY]",
        help=f"say whether the model will fit raspberry-pi-4, raspberry-pi-5, two-core-x86 or the"
        f" recipe's [score.device], and how fast it should be; {verdict}",
    )


def add_trust(parser: Parser) -> None:
    """``--trust FILE``."""
    parser.add_argument("--trust", metavar="FILE", help="whom you trust (default: your trust file)")


def add_substituters(parser: Parser) -> None:
    """Who may have what is missing, and whom to believe."""
    add_places(parser)
    add_trust(parser)


def add_places(parser: Parser) -> None:
    """``--substituter URL``."""
    parser.add_argument(
        "--substituter",
        metavar="URL",
        action="append",
        default=[],
        help="copy from there what it has (repeatable; also $KOLM_SUBSTITUTERS)",
    )


def add_key(parser: Parser, unsigned: str = "write the artifact unsigned") -> None:
    """What signs; `unsigned` says what it means that nothing does."""
    parser.add_argument(
        "--key", metavar="FILE", help="the signing key (default: ~/.config/kolm/key.pem)"
    )
    parser.add_argument("--no-sign", action="store_true", help=unsigned)
    add_passphrase(parser)


def add_passphrase(parser: Parser) -> None:
    """Where a key's passphrase comes from."""
    parser.add_argument(
        "--passphrase-file",
        metavar="FILE",
        help="first line is the key's passphrase (default: $KOLM_PASSPHRASE, or asked for)",
    )


def size_bytes(text: str) -> int:
    """`text`, such as ``512M`` or ``8G`` (powers of 1024), in bytes; at least 1 MiB."""
    number, unit = text[:-1], text[-1:].upper()
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or int(number) < 1:
        raise ArgumentTypeError(f"expected a size such as 512M, 8G or 1T, got {text!r}")
    return int(number) << _UNITS[unit]


def positive(text: str) -> int:
    """`text` as a whole number above zero."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)
