"""What the `build/` folder of an artifact tells: the lock and the derivations (spec/artifact.md).

The packager takes the manifest's claims from here and the verifier checks them against it, so
both read it with this module. It needs the standard library alone: a derivation is read as its
plain record, and that its file name is its BLAKE3 digest is for `kolm rebuild` to check.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kolm_build.core import cbor
from kolm_build.errors import InvalidRecordError

RECIPE = "kolm.toml"
LOCK = "kolm.lock"
DERIVATIONS = "derivations/"

_SCRIPT_OF_A_MODEL = re.compile("(base|model-.+)-script")
_AGAINST = "against"
_CALL_LOG, _PROVENANCE = "call_log", "provenance_"
_EXACT = "exact-1"
_FILE = re.compile(DERIVATIONS + r"[0-9a-f]{64}\.cbor")
_DIGEST = re.compile("b3:[0-9a-f]{64}")

Table = Mapping[str, object]
Params = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """How an artifact was made.

    Attributes:
        lock: The lock's table.
        derivations: The plain records of everything above the package, in no order.
    """

    lock: Table
    derivations: tuple[Table, ...]

    def params(self, step: str) -> Params | None:
        """The parameters that every derivation of `step` has; None where there is none.

        Raises:
            InvalidRecordError: Several differ, so that nobody can tell which one counts.
        """
        return self._one(step, self.all_params(step))

    @property
    def data(self) -> Params | None:
        """The parameters of the derivation that split the rows of `[data]`, as `params` has them.

        Other sets of rows are split against those: that is an input which these do not have.
        """
        found = [each for each in self._of("dataset") if not _has_input(each, _AGAINST)]
        return self._one("dataset", [_params(each) for each in found])

    def all_params(self, step: str) -> tuple[Params, ...]:
        """The parameters of every derivation of `step`."""
        return tuple(_params(record) for record in self._of(step))

    def _of(self, step: str) -> Iterator[Table]:
        return (record for record in self.derivations if record["step"] == step)

    def _one(self, step: str, found: Sequence[Params]) -> Params | None:
        if any(params != found[0] for params in found):
            raise InvalidRecordError(
                f"several derivations of the step {step}", where="build/derivations"
            )
        return found[0] if found else None

    @property
    def numerics(self) -> str:
        """The one numerics class that decided bits: `exact-1` where no floating point did."""
        classes = {_text(record["numerics"], "class") for record in self.derivations} - {_EXACT}
        if len(classes) > 1:
            raise InvalidRecordError(
                "several numerics classes in one artifact", actual=", ".join(sorted(classes))
            )
        return classes.pop() if classes else _EXACT

    @property
    def licence(self) -> str:
        """The licences of the locked weights or of the scripts that make them, sorted, joined."""
        found = {
            _text(entry, "licence")
            for entry in self.inputs
            if entry.get("kind") == "weights" or _SCRIPT_OF_A_MODEL.fullmatch(_text(entry, "name"))
        }
        return " AND ".join(sorted(found - {""}))

    @property
    def inputs(self) -> tuple[Table, ...]:
        """The lock's ``[[input]]`` tables."""
        return _tables(self.lock, "input")

    @property
    def locked(self) -> tuple[Mapping[str, bytes], frozenset[bytes], bytes]:
        """What the lock pins: code by step, the trees of all inputs, the environment's record."""
        environment = self.lock.get("environment")
        installed = [
            {
                "name": _text(entry, "name"),
                "version": _text(entry, "version"),
                "content": _digest(entry, "tree"),
            }
            for entry in self.distributions
        ]
        record = {
            "v": 1,
            "python": _text(environment, "python"),
            "interpreter": _digest(environment, "interpreter"),
            "distributions": installed,
        }
        code = {_text(each, "step"): _digest(each, "tree") for each in _tables(self.lock, "code")}
        return code, frozenset(_digest(each, "tree") for each in self.inputs), cbor.encode(record)

    @property
    def teachers(self) -> Mapping[bytes, Mapping[str, str]]:
        """Of the raw digest of each log of calls what is said of the teacher that answered."""
        return {
            log: {
                name.removeprefix(_PROVENANCE): str(value)
                for name, value in sorted(_params(record).items())
                if name.startswith(_PROVENANCE)
            }
            for record in self._of("dataset")
            for log in _raw(_only(record.get("inputs"), _CALL_LOG), "content")
        }

    @property
    def distributions(self) -> tuple[Table, ...]:
        """The lock's ``[[distribution]]`` tables."""
        return _tables(self.lock, "distribution")


def _params(record: Table) -> Params:
    return record["params"]  # type: ignore[return-value]  # a table of text and integers: it was checked


def _has_input(record: Table, role: str) -> bool:
    inputs = record.get("inputs")
    return isinstance(inputs, dict) and role in inputs


def _only(table: object, name: str) -> object:
    """`table` with the entry `name` alone."""
    return {name: table[name]} if isinstance(table, dict) and name in table else {}


def needed_derivations(record: Table) -> Iterator[bytes]:
    """The raw digests of the derivations whose outputs are inputs of `record`."""
    return _raw(record.get("inputs"), "derivation")


def locked_contents(record: Table) -> Iterator[bytes]:
    """The raw tree digests that `record` takes from the lock: inputs, and outputs it expects."""
    yield from _raw(record.get("inputs"), "content")
    yield from _raw(record.get("outputs"), "expect")


def _raw(table: object, name: str) -> Iterator[bytes]:
    for value in table.values() if isinstance(table, dict) else ():
        raw = value.get(name) if isinstance(value, dict) else None
        if isinstance(raw, bytes):
            yield raw


def parse_story(files: Mapping[str, bytes]) -> Story:
    """The story in `files`: the paths below `build/` and their bytes.

    Raises:
        InvalidRecordError: The recipe, the lock or the derivations are missing or malformed.
    """
    for path in (RECIPE, LOCK):
        if path not in files:
            raise InvalidRecordError("missing from the story", where=path)
    names = [path for path in files if path.startswith(DERIVATIONS)]
    if not names:
        raise InvalidRecordError("no derivation in the story", where=DERIVATIONS)
    _toml(files[RECIPE], RECIPE)
    return Story(
        lock=_toml(files[LOCK], LOCK),
        derivations=tuple(_derivation(path, files[path]) for path in sorted(names)),
    )


def _toml(data: bytes, path: str) -> Table:
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecordError("not TOML", where=path, actual=str(error)[:120]) from None


def _derivation(path: str, data: bytes) -> Table:
    if not _FILE.fullmatch(path):
        raise InvalidRecordError("not a derivation's file name", where=path)
    try:
        record = cbor.decode(data)
        if not isinstance(record, dict) or type(record.get("step")) is not str:
            raise InvalidRecordError("not a derivation")
        _text(record.get("numerics"), "class")
        params = record.get("params")
        if not isinstance(params, dict) or {type(each) for each in params.values()} - {str, int}:
            raise InvalidRecordError("not parameters", where="params")
    except InvalidRecordError as error:
        raise error.under(path) from None
    return record


def _tables(lock: Table, name: str) -> tuple[Table, ...]:
    found = lock.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InvalidRecordError("not an array of tables", where=f"{LOCK}: {name}")
    return tuple(found)


def _text(table: object, name: str) -> str:
    value = table.get(name, "") if isinstance(table, dict) else None
    if type(value) is not str:
        raise InvalidRecordError("not text", where=name, actual=repr(value)[:80])
    return value


def _digest(table: object, name: str) -> bytes:
    text = _text(table, name)
    if not _DIGEST.fullmatch(text):
        raise InvalidRecordError("not a digest", where=f"{LOCK}: {name}", actual=ascii(text)[:90])
    return bytes.fromhex(text[3:])
