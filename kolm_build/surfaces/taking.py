"""Environments from elsewhere than the interpreter that runs kolm: another one's, or wheels."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kolm_build.core.environment import Environment
from kolm_build.engine.environment import InstalledEnvironment, capture
from kolm_build.engine.probe import Interpreter, probe_interpreter
from kolm_build.engine.stored import Stored, add, find
from kolm_build.engine.wheel import unpack_wheel
from kolm_build.engine.wheel_list import Listed, read_wheel_list
from kolm_build.errors import MachineMismatchError, UsageError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.wheels import find_wheels

Say = Callable[[str], None]
"""Told what is being done, where it takes a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where an environment is looked for.

    Attributes:
        python: The program of another interpreter; None for the one that runs kolm.
        wheels: A list of wheels; None for what is installed.
        find_links: A folder of wheels.
        offline: Fetch no wheel.
    """

    python: str | None = None
    wheels: str | None = None
    find_links: str | None = None
    offline: bool = False

    @classmethod
    def of(cls, args: Namespace) -> Source:
        """What a command line says.

        Raises:
            UsageError: It says two things at once.
        """
        if args.wheels and args.python:
            raise UsageError(
                "an environment is installed, or is made from wheels",
                file="--python, --wheels",
                advice="Leave out one of the two: wheels are taken for the running interpreter.",
            )
        if args.find_links and not args.wheels:
            raise UsageError(
                "a folder of wheels, and no list of them",
                file="--find-links",
                advice="Add --wheels.",
            )
        return cls(
            python=args.python,
            wheels=args.wheels,
            find_links=args.find_links,
            offline=args.offline,
        )

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is not simply the interpreter that runs kolm."""
        return self.python is not None or self.wheels is not None

    @contextmanager
    def interpreter(self, store: LocalStore, say: Say) -> Iterator[Interpreter]:
        """The interpreter with the distributions that are meant, wheels unpacked for as long.

        Raises:
            KolmError: A wheel is not what is listed, or cannot be had; see `unpack_wheel`.
        """
        if self.wheels is None:
            yield probe_interpreter(self.python)
            return
        listed = read_wheel_list(Path(self.wheels))
        with store.scratch() as scratch:
            site = scratch / "site"
            site.mkdir()
            self._unpack(listed, site, scratch, say)
            with _listed_advice(self.wheels):
                yield replace(probe_interpreter(), site=site)

    def _unpack(self, listed: Sequence[Listed], site: Path, scratch: Path, say: Say) -> None:
        folder = None if self.find_links is None else Path(self.find_links)
        if folder is not None and not folder.is_dir():
            raise UsageError("not a folder", file=self.find_links, expected="a folder of wheels")
        (scratch / "wheels").mkdir()
        found = find_wheels(listed, folder=folder, scratch=scratch / "wheels", offline=self.offline)
        say(f"unpacking {len(listed)} wheels")
        for one in listed:
            unpack_wheel(found[one.name], site, one)


@contextmanager
def _listed_advice(file: str) -> Iterator[None]:
    """What is not among the wheels has to be listed, and not to be installed."""
    try:
        yield
    except MachineMismatchError as error:
        error.advice = f"What the recipe names, and all that it requires, has to stand in {file}."
        raise


def take(roots: Sequence[str], source: Source, store: LocalStore, say: Say) -> Environment | None:
    """The environment that `roots` make, taken into `store`; None where it is not elsewhere.

    Raises:
        KolmError: It cannot be had; see `capture` and `Source.interpreter`.
    """
    if not source.is_elsewhere:
        return None
    with source.interpreter(store, say) as interpreter:
        # What is unpacked for a moment is not worth remembering.
        memo = store if source.wheels is None else None
        environment = capture(roots, memo=memo, interpreter=interpreter)
        if find(store, environment.digest) is None:
            add(environment, store, interpreter=interpreter, on_files=_counting(say))
    return environment


def take_locked(locked: Environment, source: Source, store: LocalStore, say: Say) -> Stored:
    """The `locked` environment, taken into `store`.

    Raises:
        MachineMismatchError: What is there is another; the message says what differs.
        KolmError: It cannot be had; see `Source.interpreter`.
    """
    with source.interpreter(store, say) as interpreter:
        memo = store if source.wheels is None else None
        installed = InstalledEnvironment([locked], memo=memo, interpreter=interpreter)
        installed.check(locked.digest, thorough=True)
        return add(locked, store, interpreter=interpreter, on_files=_counting(say))


def _counting(say: Say) -> Callable[[int], None]:
    return lambda count: say(f"taking {count} files into the store")
