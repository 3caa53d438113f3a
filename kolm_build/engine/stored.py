"""Environments held in a store: taken in where they are installed, used where they are not.

A stored environment is a tree: its record, the interpreter, each distribution under the content
that the record names, the one folder of all of them that a step sees, and the system's libraries
that they were running on. The folder is made from the distributions by one rule, and is made
again by that rule before it is used, so nothing in it has to be believed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING

from kolm_build.core.digest import Blob, Digest
from kolm_build.core.environment import Environment
from kolm_build.core.tree import File, Folder, Node, Tree
from kolm_build.engine.elf import read_elf
from kolm_build.engine.environment import interpreter_files
from kolm_build.engine.installed import Installed, installed
from kolm_build.engine.native import LIBRARIES, PROGRAMS, native_files
from kolm_build.engine.probe import Interpreter, probe_interpreter
from kolm_build.engine.sandbox import (
    ENVIRONMENT,
    Bind,
    Surroundings,
    compile_arguments,
    find_sandbox,
)
from kolm_build.engine.site import Trees, below, site_of
from kolm_build.errors import (
    CorruptObjectError,
    InvalidRecordError,
    MachineMismatchError,
    NoSandboxError,
)

if TYPE_CHECKING:
    from kolm_build.store.local import LocalStore

RECORD = "environment.cbor"
INTERPRETER = "interpreter"
DISTRIBUTIONS = "distributions"
SITE = "site-packages"
NATIVE = "native"

_MAX_RECORD_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An environment in a store.

    Attributes:
        environment: What it is.
        tree: The tree that holds it.
        native: The tree of the system's libraries that came with it.
    """

    environment: Environment
    tree: Digest
    native: Digest


def find(store: LocalStore, digest: Digest) -> Stored | None:
    """The environment `digest` in `store`; None where it is not there.

    Raises:
        CorruptObjectError: What is there under its name is another.
    """
    for root in store.roots():
        if root.name == digest.hex:
            for tree in root.trees:
                if store.has_tree(tree):
                    return read(store, tree, expected=digest)
    return None


def every(store: LocalStore) -> Iterator[Stored]:
    """Every environment in `store`, by digest."""
    for root in store.roots():
        for tree in root.trees:
            if store.has_tree(tree) and _is_named(store, tree, root.name):
                yield read(store, tree, expected=Digest.parse(f"b3:{root.name}"))


def read(store: Trees, tree: Digest, *, expected: Digest) -> Stored:
    """The environment that `tree` holds, its parts those that its record names.

    Raises:
        CorruptObjectError: It is another, or has other parts.
    """
    entries = dict(store.tree(tree).entries)
    environment = _environment(store, entries)
    parts = {name: node.tree for name, node in entries.items() if isinstance(node, Folder)}
    if environment.digest != expected:
        raise _other("an environment", str(expected), str(environment.digest))
    if entries.keys() != {RECORD, INTERPRETER, DISTRIBUTIONS, SITE, NATIVE}:
        raise _other("the parts of an environment", "five parts", ", ".join(entries))
    if parts.get(INTERPRETER) != environment.interpreter:
        raise _other("an interpreter", str(environment.interpreter), str(parts.get(INTERPRETER)))
    named = _distributions_tree(environment).digest
    if parts.get(DISTRIBUTIONS) != named:
        raise _other("distributions", str(named), str(parts.get(DISTRIBUTIONS)))
    if NATIVE not in parts or SITE not in parts:
        raise _other("the parts of an environment", "folders", "files")
    return Stored(environment=environment, tree=tree, native=parts[NATIVE])


def check_site(store: Trees, stored: Stored) -> None:
    """Refuse an environment whose folder is not the one that its distributions make.

    Raises:
        CorruptObjectError: It is another.
    """
    expected = site_of(store, stored.environment).digest
    node = dict(store.tree(stored.tree).entries)[SITE]
    actual = node.tree if isinstance(node, Folder) else None
    if actual != expected:
        raise _other("the folder of all distributions", str(expected), str(actual))


def add(
    environment: Environment,
    store: LocalStore,
    *,
    interpreter: Interpreter | None = None,
    on_files: Callable[[int], None] = lambda _: None,
) -> Stored:
    """Take an environment that is installed here into `store`, with a root of its own.

    Args:
        environment: What is locked.
        store: Takes it.
        interpreter: Where it is installed; the running one where None.
        on_files: Told how many files it has.

    Raises:
        MachineMismatchError: What is installed here is another environment.
    """
    interpreter = interpreter or probe_interpreter()
    files = dict(_files(environment, interpreter))
    on_files(sum(map(len, files.values())))
    contents = store.ingest_files(files)
    _check_contents(environment, contents)
    site = site_of(store, environment).keep(store)
    distributions = store.put_tree(_distributions_tree(environment))
    record = store.put_blob(environment.encode())
    tree = store.put_tree(
        Tree.of(
            [
                (RECORD, _file(record)),
                (INTERPRETER, Folder(tree=environment.interpreter)),
                (DISTRIBUTIONS, Folder(tree=distributions)),
                (SITE, Folder(tree=site)),
                (NATIVE, Folder(tree=contents[NATIVE])),
            ]
        )
    )
    store.add_root(environment.digest.hex, trees=[tree])
    return Stored(environment=environment, tree=tree, native=contents[NATIVE])


def surroundings(
    store: LocalStore,
    stored: Stored,
    *,
    native: bool,
    on_unpack: Callable[[], None] = lambda: None,
) -> Surroundings:
    """What a step in a stored environment sees, unpacked in the store's own folder.

    Args:
        store: Has it, and is written to.
        stored: The environment.
        native: Whether the step sees the system's libraries that came with it, and none of this
            machine's.
        on_unpack: Called before it is unpacked, which takes a while and is done once.

    Raises:
        CorruptObjectError: It is not what it is called.
        MachineMismatchError: It is for another processor architecture.
    """
    store.pin([stored.tree])

    def make(folder: Path) -> None:
        on_unpack()
        check_site(store, stored)
        folder.mkdir()
        _unpack(store, stored, folder)
        _compile(store, stored, folder)

    place = store.unpacked(stored.tree, make)
    binary = place / INTERPRETER / _program(store, stored.environment)
    _check_architecture(binary)
    return Surroundings(
        binds=(Bind(outside=place / SITE, inside=ENVIRONMENT),),
        interpreter=Interpreter(
            binary=binary,
            prefix=place / INTERPRETER,
            version=stored.environment.python,
            site=place / SITE,
            foreign=(),
        ),
        native=place / NATIVE if native else None,
    )


def native_names(store: LocalStore, stored: Stored) -> tuple[tuple[str, File], ...]:
    """The system's libraries and programs that came with an environment, by path."""
    return tuple(sorted(below(store, stored.native)))


def _check_architecture(program: Path) -> None:
    stored, here = read_elf(program), read_elf(Path(sys.executable))
    if stored is None or here is None or stored.machine != here.machine:
        raise MachineMismatchError(
            "the stored environment is for another processor architecture",
            expected=f"ELF machine {here.machine if here else 'unknown'}",
            actual=f"ELF machine {stored.machine if stored else 'unknown'}",
            advice="Lock and install an environment for this machine; portable-1 gives the same"
            " bytes for every node but those that tell of the environment.",
        )


def _unpack(store: LocalStore, stored: Stored, folder: Path) -> None:
    entries = dict(store.tree(stored.tree).entries)
    for name in (INTERPRETER, SITE, NATIVE):
        node = entries[name]
        assert isinstance(node, Folder)
        store.materialise(node.tree, folder / name)
    programs = (folder / INTERPRETER / "bin", folder / NATIVE / PROGRAMS)
    libraries = (folder / NATIVE / LIBRARIES,)
    for place in (*programs, *libraries):
        for path in place.iterdir() if place.is_dir() else ():
            path.chmod(0o555)


def _compile(store: LocalStore, stored: Stored, folder: Path) -> None:
    """Compile its modules, which every step would else do again; where that fails, every step does.

    Wheels bring modules of other versions of Python, which do not compile: the status says
    nothing.
    """
    arguments = compile_arguments(
        interpreter=folder / INTERPRETER,
        program=_program(store, stored.environment),
        site=folder / SITE,
        native=folder / NATIVE,
    )
    with suppress(NoSandboxError, OSError):
        bwrap = find_sandbox().bwrap
        subprocess.run([str(bwrap), *arguments], stdin=DEVNULL, capture_output=True, check=False)


def _files(
    environment: Environment, interpreter: Interpreter
) -> Iterator[tuple[str, Mapping[str, Path]]]:
    """Name to files of every tree that is taken in; distributions by their own names."""
    found = installed(interpreter.site)
    binaries: list[Path] = []
    own: set[str] = set()
    for one in environment.distributions:
        files = _distribution_files(one.name, found)
        binaries += [place for path, place in files.items() if ".so" in path]
        own |= {path.rpartition("/")[2] for path in files if ".so" in path}
        yield one.name, files
    mine = {path: interpreter.prefix / path for path in interpreter_files(interpreter)}
    own |= {path.rpartition("/")[2] for path in mine if ".so" in path}
    yield INTERPRETER, mine
    yield NATIVE, native_files([*binaries, *mine.values()], own)


def _distribution_files(name: str, found: Mapping[str, Installed]) -> Mapping[str, Path]:
    one = found.get(name)
    if one is None:
        raise MachineMismatchError(
            f"{name} is not installed", advice="Install the locked environment first."
        )
    return {path: one.site / path for path in one.rows()}


def _check_contents(environment: Environment, contents: Mapping[str, Digest]) -> None:
    """Refuse what was read if it is not what is locked, whatever was looked at before."""
    wanted = {one.name: one.content for one in environment.distributions}
    wanted[INTERPRETER] = environment.interpreter
    for name, expected in wanted.items():
        if contents[name] != expected:
            raise MachineMismatchError(
                "what is installed is not what is locked",
                where=name,
                expected=str(expected),
                actual=str(contents[name]),
                advice="Install the locked versions, or run `kolm lock --update environment`.",
            )


def _distributions_tree(environment: Environment) -> Tree:
    return Tree.of((one.name, Folder(tree=one.content)) for one in environment.distributions)


def _environment(store: Trees, entries: Mapping[str, Node]) -> Environment:
    node = entries.get(RECORD)
    if not isinstance(node, File) or node.size_bytes > _MAX_RECORD_BYTES:
        raise _other("an environment", RECORD, "no such file")
    try:
        return Environment.decode(store.read_blob(node.b3))
    except InvalidRecordError as error:
        raise _other("an environment", RECORD, error.reason) from error


def _is_named(store: LocalStore, tree: Digest, name: str) -> bool:
    """Whether a tree is an environment and the root `name` is called after it.

    The root of an import names the trees of environments too.
    """
    entries = dict(store.tree(tree).entries)
    return RECORD in entries and _environment(store, entries).digest.hex == name


def _program(store: LocalStore, environment: Environment) -> str:
    """The path of the interpreter's program below its folder.

    Raises:
        CorruptObjectError: There is none.
    """
    for name, node in store.tree(environment.interpreter).entries:
        if name == "bin" and isinstance(node, Folder):
            names = [one for one, below in store.tree(node.tree).entries if isinstance(below, File)]
            if len(names) == 1:
                return f"bin/{names[0]}"
    raise _other("an interpreter", "one program in bin/", "none, or several")


def _file(blob: Blob) -> File:
    return File(b3=blob.b3, sha256=blob.sha256, size_bytes=blob.size_bytes)


def _other(what: str, expected: str, actual: str) -> CorruptObjectError:
    return CorruptObjectError(
        f"{what} in the store is not the locked one",
        expected=expected,
        actual=actual,
        advice="`kolm store roots --remove HEX`, its digits, then `kolm env add` or import again.",
    )
