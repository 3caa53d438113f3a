"""Environments as installed here: taken down for the lock, found again for a build.

`capture` walks what the roots require and digests every file of it. `InstalledEnvironment` says
whether this machine has a locked environment, and which folders are it. Digests are remembered
with the size, time and inode of each file, so that nothing is read twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.environment import Distribution, Environment, parse_distribution_name
from kolm_build.engine.installed import Installed, hash_file, installed, stamp, tree_digest
from kolm_build.engine.probe import Interpreter, probe_interpreter
from kolm_build.engine.sandbox import ENVIRONMENT, Bind, Surroundings
from kolm_build.errors import InvalidRecordError, KolmError, MachineMismatchError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OWN = "kolm-build"
"""This project: its code travels as code trees, not as a distribution."""

_ADVICE = "Install the locked versions, or run `kolm lock --update environment`."
_NOT_STDLIB = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "idlelib",
                         "turtledemo"})  # fmt: skip


class Memo(Protocol):
    """Where digests are remembered; a store is one."""

    def memo_get(self, key: Digest) -> bytes | None:
        """What was noted under `key`."""

    def memo_put(self, key: Digest, value: bytes) -> None:
        """Note `value` under `key`."""


def capture(
    roots: Sequence[str], *, memo: Memo | None = None, interpreter: Interpreter | None = None
) -> Environment:
    """The environment that `roots` make: they and all that they require.

    Args:
        roots: Requirements such as ``torch==2.13.0`` or ``trl[peft]``.
        memo: Remembers digests; every file is read where None.
        interpreter: Whose distributions; the running one's where None.

    Raises:
        MachineMismatchError: One of them is not installed, is installed in another version, is
            editable, or was changed after it was installed.
        InvalidRecordError: A root is not a requirement.
    """
    interpreter = interpreter or probe_interpreter()
    found = installed(interpreter.site)
    names = _closure(roots, found)
    digests = _Digests(interpreter.site, memo)
    distributions = [
        Distribution(name=name, version=found[name].version, content=digests.content(found[name]))
        for name in sorted(names)
    ]
    made = Environment.of(
        python=interpreter.version,
        interpreter=digests.interpreter(interpreter),
        distributions=distributions,
    )
    digests.save()
    return made


class InstalledEnvironment:
    """The environments of a lock, found on this machine.

    Args:
        locked: The environments that derivations may name.
        memo: Remembers digests; every file is read where None.
        interpreter: Whose distributions; the running one's where None.
    """

    def __init__(
        self,
        locked: Iterable[Environment],
        *,
        memo: Memo | None = None,
        interpreter: Interpreter | None = None,
    ) -> None:
        self._locked = {environment.digest: environment for environment in locked}
        self._memo = memo
        self._interpreter = interpreter or probe_interpreter()
        self._binds: dict[Digest, tuple[Bind, ...]] = {}

    def __call__(self, digest: Digest) -> Surroundings:
        """What a step in an environment sees; the errors of `binds`."""
        return Surroundings(binds=self.binds(digest))

    def binds(self, digest: Digest) -> tuple[Bind, ...]:
        """The folders of one environment, after a look at every file's size and time.

        Raises:
            MachineMismatchError: It is not what is installed here; the message says what differs.
        """
        if digest not in self._binds:
            self.check(digest, thorough=True)
            names = {one.name for one in self._locked[digest].distributions}
            self._binds[digest] = tuple(_binds(installed(self._interpreter.site), names))
        return self._binds[digest]

    def check(self, digest: Digest, *, thorough: bool = False) -> None:
        """Refuse an environment that is not the installed one.

        Args:
            digest: The environment's digest, as derivations have it.
            thorough: Look at every file, and not at each distribution's RECORD alone.

        Raises:
            MachineMismatchError: The interpreter or a distribution is another.
        """
        different = self.differences(digest, thorough=thorough)
        if different:
            raise MachineMismatchError(
                "the installed environment is not the locked one",
                where="environment",
                expected="; ".join(expected for expected, _ in different),
                actual="; ".join(actual for _, actual in different),
                advice=_ADVICE,
            )

    def differences(self, digest: Digest, *, thorough: bool = True) -> list[tuple[str, str]]:
        """(locked, installed) texts of everything that is another here.

        Raises:
            MachineMismatchError: The lock does not have the environment.
        """
        locked = self._locked.get(digest)
        if locked is None:
            raise MachineMismatchError(
                "a derivation needs an environment that the lock does not have",
                actual=str(digest),
                advice=_ADVICE,
            )
        digests = _Digests(self._interpreter.site, self._memo, thorough=thorough)
        different = [*self._interpreter_differs(locked, digests), *self._differ(locked, digests)]
        digests.save()
        return different

    def _interpreter_differs(
        self, locked: Environment, digests: _Digests
    ) -> Iterator[tuple[str, str]]:
        here = self._interpreter
        if locked.python != here.version:
            yield f"python {locked.python}", f"python {here.version}"
        elif locked.interpreter != (actual := digests.interpreter(here)):
            yield f"python {locked.python} {locked.interpreter}", f"python {here.version} {actual}"

    def _differ(self, locked: Environment, digests: _Digests) -> Iterator[tuple[str, str]]:
        found = installed(self._interpreter.site)
        for want in locked.distributions:
            have = found.get(want.name)
            expected = f"{want.name} {want.version}"
            if have is None:
                yield expected, f"{want.name} is not installed"
            elif have.version != want.version:
                yield expected, f"{have.name} {have.version}"
            elif (content := _content(have, digests)) != want.content:
                yield f"{expected} {want.content}", f"{expected} {content}"


def _content(distribution: Installed, digests: _Digests) -> Digest | str:
    """The content, or in its place what is wrong with it."""
    try:
        return digests.content(distribution)
    except KolmError as error:
        return error.reason


class _Digests:
    """Digests of what is installed in one folder, remembered.

    A note holds two stamps: of the RECORD, or of the interpreter's program, which is looked at
    always; and of every file, which is looked at when being thorough.
    """

    def __init__(self, site: Path, memo: Memo | None, *, thorough: bool = True) -> None:
        self._memo = memo
        self._thorough = thorough
        self._key = Digest.of_record(cbor.encode(["installed", str(site)]), RecordKind.MEMO)
        self._notes = _notes(memo.memo_get(self._key) if memo else None)
        self._is_new = False

    def content(self, distribution: Installed) -> Digest:
        """The digest of an installed distribution."""
        if distribution.is_editable():
            raise MachineMismatchError(
                f"the distribution {distribution.name} is editable and has no fixed content",
                file=str(distribution.info),
                advice="Install it from a wheel.",
            )
        quick = stamp([str(distribution.record)])
        return self._digest(distribution.name, quick, distribution.stamp, distribution.content)

    def interpreter(self, interpreter: Interpreter) -> Digest:
        """The digest of an interpreter's program and standard library."""

        def files() -> Mapping[str, str]:
            return {path: f"{interpreter.prefix}/{path}" for path in interpreter_files(interpreter)}

        return self._digest(
            str(interpreter.binary),
            stamp([str(interpreter.binary)]),
            lambda: stamp(files().values()),
            lambda: tree_digest({path: hash_file(Path(at)) for path, at in files().items()}),
        )

    def _digest(
        self,
        name: str,
        quick: bytes,
        full: Callable[[], bytes],
        content: Callable[[], Digest],
    ) -> Digest:
        note = self._notes.get(name)
        if note is not None and note[0] == quick and not (self._thorough and note[1] != full()):
            return Digest(note[2])
        made = content()
        self._notes[name] = (quick, full(), made.raw)
        self._is_new = True
        return made

    def save(self) -> None:
        """Remember what was worked out."""
        if self._is_new and self._memo is not None:
            value = {name: list(note) for name, note in self._notes.items()}
            self._memo.memo_put(self._key, cbor.encode(value))


_Note = tuple[bytes, bytes, bytes]


def _notes(data: bytes | None) -> dict[str, _Note]:
    """What was remembered; nothing where it cannot be read."""
    if data is None:
        return {}
    try:
        value = cbor.decode(data)
    except InvalidRecordError:
        return {}
    notes: dict[str, _Note] = {}
    for name, note in value.items() if isinstance(value, dict) else ():
        match note:
            case [bytes(quick), bytes(full), bytes(content)]:
                notes[name] = (quick, full, content)
            case _:
                return {}
    return notes


def interpreter_files(interpreter: Interpreter) -> list[str]:
    """The program, its shared library and the standard library, below the prefix, sorted.

    Links are left out: where they lead is counted, or is out of the sandbox's sight.
    """
    prefix = interpreter.prefix
    version = "python" + ".".join(interpreter.version.split(".")[:2])
    found = [interpreter.binary.relative_to(prefix).as_posix()]
    libraries = (prefix / "lib").glob("libpython*.so*")
    found += [path.relative_to(prefix).as_posix() for path in libraries if not path.is_symlink()]
    for folder, below, names in os.walk(prefix / "lib" / version):
        below[:] = [
            one for one in below if one not in _NOT_STDLIB and not one.startswith("config-")
        ]
        place = Path(folder)
        found += [(place / name).relative_to(prefix).as_posix() for name in names
                  if not name.endswith(".pyc") and not (place / name).is_symlink()]  # fmt: skip
    return sorted(found)


def _closure(roots: Sequence[str], found: Mapping[str, Installed]) -> set[str]:
    """The names of all distributions that `roots` require, themselves included."""
    parse = _parser()
    seen: set[tuple[str, str]] = set()
    waiting: list[tuple[Requirement, str]] = []
    for root in roots:
        requirement = parse(root)
        _check_root(requirement, found)
        waiting.append((requirement, "the recipe"))
    while waiting:
        requirement, by = waiting.pop()
        have = _found(requirement, by, found)
        for extra in ("", *sorted(requirement.extras)):
            if (have.name, extra) in seen:
                continue
            seen.add((have.name, extra))
            for text in have.requirements():
                needed = parse(text)
                if _applies(needed, extra):
                    waiting.append((needed, have.name))
    return {name for name, _ in seen if name != OWN}


def _applies(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return extra == ""
    return requirement.marker.evaluate({"extra": extra})


def _found(requirement: Requirement, by: str, found: Mapping[str, Installed]) -> Installed:
    name = parse_distribution_name(requirement.name)
    if name not in found:
        raise MachineMismatchError(
            f"{name} is required by {by} and is not installed",
            where="environment.distributions",
            expected=str(requirement),
            advice=f"`pip install {name}`, in the environment that is to be locked.",
        )
    return found[name]


def _check_root(requirement: Requirement, found: Mapping[str, Installed]) -> None:
    have = _found(requirement, "the recipe", found)
    if not requirement.specifier.contains(have.version, prereleases=True):
        raise MachineMismatchError(
            "another version is installed",
            where="environment.distributions",
            expected=str(requirement),
            actual=f"{have.name} {have.version}",
            advice=f"`pip install '{requirement}'`, in the environment that is to be locked.",
        )


def _parser() -> Callable[[str], Requirement]:
    """Reads a requirement, by `packaging` or the copy of it that pip brings."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import (  # type: ignore[assignment]  # the same
            InvalidRequirement,
            Requirement,
        )

    def parse(text: str) -> Requirement:
        try:
            return Requirement(text)
        except InvalidRequirement as error:
            raise InvalidRecordError(
                "not a requirement",
                where="environment.distributions",
                expected="a name, perhaps with extras and a version, such as torch==2.13.0",
                actual=repr(text)[:80],
            ) from error

    return parse


def _binds(found: Mapping[str, Installed], names: Iterable[str]) -> Iterator[Bind]:
    """What shows the distributions `names`, and no other, at ``/kolm/site-packages``.

    Whole folders wherever no other distribution shares them: a bind costs a fifth of a
    millisecond a step, and thousands of files would be felt.
    """
    wanted = set(names)
    mine: list[str] = []
    others: list[str] = []
    for name, one in found.items():
        (mine if name in wanted else others).extend(_rows(one, wanted))
    site = next((one.site for one in found.values()), Path("/"))
    for place in _whole(mine, others):
        yield Bind(outside=site / place, inside=f"{ENVIRONMENT}/{place}")


def _rows(one: Installed, wanted: set[str]) -> Iterable[str]:
    try:
        return one.rows()
    except MachineMismatchError:
        if one.name in wanted:
            raise
        return ()


def _whole(mine: Iterable[str], others: Iterable[str], prefix: str = "") -> Iterator[str]:
    """The shortest list of folders and files that holds all of `mine` and none of `others`."""
    foreign: dict[str, list[str]] = {}
    for path in others:
        name, _, rest = path.partition("/")
        foreign.setdefault(name, []).append(rest)
    groups: dict[str, list[str]] = {}
    for path in mine:
        name, _, rest = path.partition("/")
        groups.setdefault(name, []).append(rest)
    for name, below in sorted(groups.items()):
        if name in foreign and any(below):
            yield from _whole(below, foreign[name], f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}"
