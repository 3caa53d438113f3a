"""Every error that kolm_build raises on purpose, and what each means to its reader.

One base class. A class is chosen by what the reader can do about it, a `code` is stable for
machines, and the exit status is a set of bits (spec/cli.md), so that CI can tell a failed gate
from a build that is not reproducible, from an untrusted file, from a full disk.
"""

from __future__ import annotations

from enum import IntFlag

TYPE_CHECKING = False  # as `typing` has it; a build with nothing to do does without that module
if TYPE_CHECKING:
    from typing import ClassVar, Self


class Exit(IntFlag):
    """The bits of kolm's exit status (spec/cli.md). Several troubles at once are OR-ed."""

    OK = 0
    MACHINE = 1
    INPUT = 2
    STORE = 4
    BUILD = 8
    NOT_REPRODUCIBLE = 16
    GATE = 32
    TRUST = 64
    BUG = 128
    INTERRUPTED = 130


class KolmError(Exception):
    """The base of every error that a user may see.

    Args:
        reason: What is wrong, one sentence without a final full stop.
        file: The file it was found in, if any.
        where: The path inside that file or record, such as ``train[0].learning_rate``.
        expected: What had to be there.
        actual: What was there.
        advice: What the reader can do next.
    """

    code: ClassVar[str] = "error"
    exit: ClassVar[Exit] = Exit.BUG

    def __init__(
        self,
        reason: str,
        *,
        file: str | None = None,
        where: str | None = None,
        expected: str | None = None,
        actual: str | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.file = file
        self.where = where
        self.expected = expected
        self.actual = actual
        self.advice = advice

    def under(self, prefix: str) -> Self:
        """This error, its `where` put below `prefix`: paths grow on the way out."""
        if self.where is None:
            self.where = prefix
        else:
            joint = "" if self.where.startswith("[") else "."
            self.where = f"{prefix}{joint}{self.where}"
        return self

    def in_file(self, file: str) -> Self:
        """This error, found in `file`, unless a file is named already."""
        self.file = self.file or file
        return self

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.file, self.where) if part)
        lines = [f"{place}: {self.reason}" if place else self.reason]
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.actual is not None:
            lines.append(f"  actual:   {self.actual}")
        if self.advice is not None:
            lines.append(f"  {self.advice}")
        return "\n".join(lines)

    def to_value(self) -> dict[str, str]:
        """The error as a JSON object: `code` and every part that is known."""
        parts = {
            "code": self.code,
            "reason": self.reason,
            "file": self.file,
            "where": self.where,
            "expected": self.expected,
            "actual": self.actual,
            "advice": self.advice,
        }
        return {name: part for name, part in parts.items() if part is not None}


class InvalidRecordError(KolmError):
    """A recipe, lock, record, dataset or foreign file is not what its format says."""

    code = "input.invalid"
    exit = Exit.INPUT


class UsageError(KolmError):
    """The command line asks for something that cannot be asked."""

    code = "input.usage"
    exit = Exit.INPUT


class UnsupportedVersionError(InvalidRecordError):
    """A record of a newer format than this program reads."""

    code = "input.unsupported-version"


class StaleLockError(InvalidRecordError):
    """The lock does not belong to this recipe, or an input changed since it was locked."""

    code = "input.stale-lock"


class InvalidDataError(InvalidRecordError):
    """Rows that cannot be trained on: empty, duplicate, too long, leaking, badly encoded."""

    code = "input.data"


class PackError(InvalidRecordError):
    """A file is not a kolmpack, or one that this program must not take in."""

    code = "input.pack"


class PackDamagedError(PackError):
    """A pack's bytes are not those that its head names: damaged, cut off, or added to."""

    code = "input.pack-damaged"


class PackIncompleteError(PackError):
    """A pack lacks an object that something in it names, or holds one that nothing names."""

    code = "input.pack-incomplete"


class DoesNotFitError(KolmError):
    """What the recipe makes cannot run on the device that it is meant for."""

    code = "input.does-not-fit"
    exit = Exit.INPUT


class MachineError(KolmError):
    """This machine cannot do it: no space, no memory, no permission, no network."""

    code = "machine.error"
    exit = Exit.MACHINE


class NoSpaceError(MachineError):
    """A disk is full or a quota is used up."""

    code = "machine.no-space"


class PermissionDeniedError(MachineError):
    """A file or folder may not be read or written by this user."""

    code = "machine.permission"


class NoSandboxError(MachineError):
    """Steps cannot be isolated here, and running them openly was not asked for."""

    code = "machine.no-sandbox"


class NetworkError(MachineError):
    """A source could not be reached, or `--offline` forbids reaching it."""

    code = "machine.network"


class MachineMismatchError(MachineError):
    """The derivation is pinned to another kind of machine or environment."""

    code = "machine.mismatch"


class KernelsMissingError(MachineError):
    """The compiled kernels of portable-1 are not there, or not those that the step needs."""

    code = "machine.no-portable-kernels"


class FloatingPointEnvironmentError(MachineError):
    """A thread rounds in another direction, or flushes small numbers to zero."""

    code = "machine.floating-point"


class StoreError(KolmError):
    """The store cannot do what was asked."""

    code = "store.error"
    exit = Exit.STORE


class MissingObjectError(StoreError):
    """An object that a record names is not in the store."""

    code = "store.missing"


class CorruptObjectError(StoreError):
    """An object's bytes do not have the digest they are stored under."""

    code = "store.corrupt"


class StoreFormatError(StoreError):
    """The folder is not a store, or a store of another version."""

    code = "store.format"


class ReadOnlyStoreError(StoreError):
    """Something had to be written and the store is open for reading only."""

    code = "store.read-only"


class BuildError(KolmError):
    """A derivation could not be built."""

    code = "build.error"
    exit = Exit.BUILD


class StepFailedError(BuildError):
    """A step ended with an error; its log says why."""

    code = "build.step-failed"


class StepKilledError(BuildError):
    """A step was killed from outside: out of memory, or over a limit."""

    code = "build.step-killed"
    exit = Exit.BUILD | Exit.MACHINE


class PackedWeightError(BuildError):
    """A weight changed while its packed copy was in use: what was computed may be of either."""

    code = "build.packed-weight-changed"


class UncertifiedOperatorError(BuildError):
    """The model calls an operation that does not give the same bits on every machine."""

    code = "build.uncertified-operator"


class UncertifiedSettingError(BuildError):
    """A switch that can change bits was moved during a portable build."""

    code = "build.uncertified-setting"


class NotFiniteError(BuildError):
    """A loss, gradient norm, weight or logit is NaN or infinite."""

    code = "build.not-finite"


class RoundError(BuildError):
    """A round of federated training cannot be finished: too few sites are left."""

    code = "federated.round"


class WrongContentError(BuildError):
    """A fetched or fixed output does not have the digest that the lock names."""

    code = "build.wrong-content"
    exit = Exit.BUILD | Exit.INPUT


class NotReproducibleError(KolmError):
    """Two contents for one derivation."""

    code = "build.not-reproducible"
    exit = Exit.NOT_REPRODUCIBLE


class GateFailedError(KolmError):
    """The quality gate refused the result: nothing was packaged or signed."""

    code = "gate.failed"
    exit = Exit.GATE


class VerificationError(KolmError):
    """An artifact, signature or claim does not hold."""

    code = "trust.verification"
    exit = Exit.TRUST


class ContainerError(VerificationError):
    """The file is not laid out as an artifact: hidden, missing or disagreeing bytes."""

    code = "trust.container"


class ManifestError(VerificationError):
    """The manifest is malformed, or says something that the members do not."""

    code = "trust.manifest"


class ContentError(VerificationError):
    """A member's bytes are not those that the manifest names."""

    code = "trust.content"


class SignatureError(VerificationError):
    """An attestation is malformed, forged, or about something else."""

    code = "trust.signature"


class EvidenceError(VerificationError):
    """A figure, split or verdict in the artifact does not follow from its own evidence."""

    code = "trust.evidence"


class SubmissionError(VerificationError):
    """What a party of a federated round sent is forged, stale, or not what the round asks for."""

    code = "federated.submission"


class UnsupportedArtifactError(VerificationError):
    """An artifact of a format that this program does not read; it may be good."""

    code = "trust.unsupported"
    exit = Exit.TRUST | Exit.INPUT


class UntrustedError(VerificationError):
    """The bytes hold, but no key that the reader trusts vouches for them."""

    code = "trust.untrusted"


class KeyFileError(KolmError):
    """A key or trust file cannot be used."""

    code = "trust.key"
    exit = Exit.TRUST | Exit.INPUT
