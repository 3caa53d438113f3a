"""`libkolm_decoder.so`, which reads a network without torch, through ctypes (GEN-70 to GEN-74).

The structures here are those of csrc/decoder/decoder.h; the library says which sources it was
compiled from, and others than those beside this module are refused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kolm_build.errors import BuildError, FloatingPointEnvironmentError, MachineError
from kolm_build.numerics import kernels

LIBRARY = kernels.HERE / "libkolm_decoder.so"

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ids = np.ndarray[Any, np.dtype[np.int32]]

ELEMENTS: Mapping[str, int] = {"F32": 0, "BF16": 1, "F16": 2}
"""Storage formats by their safetensors names, as csrc/gemm.h numbers them."""

MOST_WIDTH = 1024
"""Most numbers of a head."""

PLAIN, QUANTISED, INTEGERS = 0, 1, 2
"""How a matrix takes part in a product."""

CODES: Mapping[str, int] = {"offset4": 0, "offset8": 1, "signed8": 2, "e4m3": 3, "e2m1": 4}
SCALES: Mapping[str, int] = {"F32": 0, "BF16": 1, "F16": 2, "F8_E4M3": 3, "U8": 4}

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64


class QuantisedWeight(ctypes.Structure):
    """`QuantisedWeight` of csrc/quantised.h."""

    _fields_ = [
        ("codes", _POINTER),
        ("row_bytes", _LONG),
        ("code", ctypes.c_int),
        ("scales", _POINTER),
        ("scale_step", _LONG),
        ("scale", ctypes.c_int),
        ("shared", ctypes.c_float),
        ("zeros", _POINTER),
        ("zero_step", _LONG),
        ("group", _LONG),
    ]


class Matrix(ctypes.Structure):
    """A matrix of a file, with its bias."""

    _fields_ = [
        ("rows", _LONG),
        ("columns", _LONG),
        ("data", _POINTER),
        ("bias", _POINTER),
        ("input_scale", _POINTER),
        ("weight", QuantisedWeight),
        ("kind", ctypes.c_int32),
    ]


class Layer(ctypes.Structure):
    """One layer; its fields are also the order of its matrices."""

    _fields_ = [
        ("norm", _POINTER),
        ("second_norm", _POINTER),
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
    ]


class Network(ctypes.Structure):
    """A network."""

    _fields_ = [
        *(
            (name, _LONG)
            for name in ("vocabulary", "hidden", "inner", "layers", "heads", "key_heads", "width")
        ),
        ("frequencies", _POINTER),
        ("layer", ctypes.POINTER(Layer)),
        ("norm", _POINTER),
        ("embedding", Matrix),
        ("head", Matrix),
        ("element", ctypes.c_int),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    ]


_NO_NUMBERS, _ENVIRONMENT, _MEMORY, _NO_TOKEN, _THREADS = 1, 2, 3, 4, 5

_SIGNATURES: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "kolm_isa": (ctypes.c_char_p, (ctypes.c_int,)),
    "kolm_decoder_new": (
        _POINTER,
        (ctypes.POINTER(Network), ctypes.c_char_p, ctypes.c_int),
    ),
    "kolm_decoder_delete": (None, (_POINTER,)),
    "kolm_decoder_trouble": (ctypes.c_int, (_POINTER, ctypes.POINTER(ctypes.c_char_p))),
    "kolm_decoder_read": (ctypes.c_int, (_POINTER, _LONG, *(_POINTER,) * 4)),
    "kolm_room_new": (_POINTER, (_POINTER,)),
    "kolm_room_delete": (None, (_POINTER,)),
    "kolm_room_length": (_LONG, (_POINTER,)),
    "kolm_room_keep": (None, (_POINTER, _POINTER, _POINTER)),
    "kolm_room_start": (ctypes.c_int, (_POINTER, _POINTER, _POINTER, _LONG, _LONG)),
    "kolm_softmax": (None, (_POINTER, _LONG, _POINTER, _POINTER)),
    "kolm_power": (None, (_LONG, _POINTER, _POINTER, _POINTER)),
}


def is_compiled() -> bool:
    """Whether this installation has the library."""
    return LIBRARY.is_file()


class Library:
    """The library.

    Args:
        path: Where it is.

    Raises:
        KernelsMissingError: It is not there, does not load, or was compiled from other sources.
    """

    def __init__(self, path: Path = LIBRARY) -> None:
        self._loaded = kernels.load(path, "decoder")
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._loaded, name)
            function.restype, function.argtypes = result, arguments

    def __getattr__(self, name: str) -> Any:
        """The C function `name`."""
        if name not in _SIGNATURES:
            raise AttributeError(name)
        return getattr(self._loaded, name)

    def isas(self) -> tuple[str, ...]:
        """The instruction sets that the library has and this machine can run, best first."""
        found: list[str] = []
        while (name := self.kolm_isa(len(found))) is not None:
            found.append(name.decode())
        return tuple(found)

    def power(self, base: Floats, exponent: Floats) -> Floats:
        """`base` to the `exponent`, element by element (NUM-22)."""
        found = np.empty_like(base)
        self.kolm_power(base.size, base.ctypes.data, exponent.ctypes.data, found.ctypes.data)
        return found


class Room:
    """Keys and values of what was read of one prompt.

    Args:
        decoder: What reads.
    """

    def __init__(self, decoder: NetworkReader) -> None:
        self.decoder = decoder
        self.handle = decoder.library.kolm_room_new(decoder.handle)
        if not self.handle:
            raise _no_memory()

    def __del__(self) -> None:
        """Give its memory back."""
        if getattr(self, "handle", None):
            self.decoder.library.kolm_room_delete(self.handle)

    @property
    def length(self) -> int:
        """How many tokens were read."""
        return int(self.decoder.library.kolm_room_length(self.handle))


class NetworkReader:
    """A network that the library reads.

    Args:
        library: The library.
        network: What it reads.
        alive: What must stay in memory as long as it reads.
        isa: The instruction set; the machine's best if None. It changes no bit.
        threads: Compute threads; they change no bit.

    Raises:
        MachineError: The machine has no such instruction set, no memory, or gives no thread.
        FloatingPointEnvironmentError: A thread does not compute by IEEE 754's defaults (NUM-3).
    """

    def __init__(
        self,
        library: Library,
        network: Network,
        alive: Sequence[object],
        *,
        isa: str | None = None,
        threads: int = 1,
    ) -> None:
        self.library = library
        self.vocabulary = int(network.vocabulary)
        self._alive = alive
        named = None if isa is None else isa.encode()
        self.handle = library.kolm_decoder_new(ctypes.byref(network), named, threads)
        if not self.handle:
            raise MachineError(
                "no decoder for this instruction set, or no memory for one",
                expected=" or ".join(library.isas()),
                actual=str(isa),
            )
        trouble = ctypes.c_char_p()
        self._check(library.kolm_decoder_trouble(self.handle, ctypes.byref(trouble)))
        if trouble.value is not None:
            raise _environment(trouble.value.decode())

    def __del__(self) -> None:
        """Give its memory back."""
        if getattr(self, "handle", None):
            self.library.kolm_decoder_delete(self.handle)

    def read(self, rooms: Sequence[Room], tokens: Sequence[Sequence[int]]) -> Floats:
        """Read tokens of each prompt after what is in its room.

        Returns:
            What is expected after the last one of each, float32, rows by vocabulary.

        Raises:
            BuildError: The network computes what is no number, or does not know a token.
            FloatingPointEnvironmentError: The calling thread does not compute by IEEE 754's
                defaults.

        Determinism:
            Bitwise in `portable-1`: a row is what it is alone, whatever threads and instruction
            set.
        """
        logits = np.empty((len(rooms), self.vocabulary), dtype=np.float32)
        handles = np.array([room.handle for room in rooms], dtype=np.uintp)
        counts = np.array([len(row) for row in tokens], dtype=np.int64)
        ids = self._ids(tokens)
        status = self.library.kolm_decoder_read(
            self.handle,
            len(rooms),
            *(one.ctypes.data for one in (handles, counts, ids, logits)),
        )
        self._check(status)
        return logits

    def _ids(self, tokens: Sequence[Sequence[int]]) -> Ids:
        """The tokens one after another; those that 32 bits do not hold are refused here."""
        flat = [one for row in tokens for one in row]
        if not all(tokens) or not all(0 <= one < self.vocabulary for one in flat):
            self._check(_NO_TOKEN)
        return np.array(flat, dtype=np.int32)

    def softmax(self, logits: Floats) -> Floats:
        """The probabilities of `logits`, shape (vocabulary,), float32 (NUM-30)."""
        given = np.ascontiguousarray(logits)
        found = np.empty_like(given)
        self.library.kolm_softmax(self.handle, given.size, given.ctypes.data, found.ctypes.data)
        return found

    def keep(self, room: Room, kept: np.ndarray[Any, Any]) -> None:
        """Write what was read to `kept`, [blocks, tokens, width], in the storage format."""
        self.library.kolm_room_keep(self.handle, room.handle, kept.ctypes.data)

    def started(self, kept: np.ndarray[Any, Any], tokens: int) -> Room:
        """Room with the first `tokens` of what was kept."""
        room = Room(self)
        self._check(
            self.library.kolm_room_start(
                self.handle, room.handle, kept.ctypes.data, kept.shape[1], tokens
            )
        )
        return room

    @staticmethod
    def _check(status: int) -> None:
        if status == _NO_NUMBERS:
            raise BuildError(
                "the model computes values that are not numbers",
                where="logits",
                advice="The weights are damaged, or their range is too large for the dtype.",
            )
        if status == _ENVIRONMENT:
            raise _environment("the calling thread's")
        if status == _MEMORY:
            raise _no_memory()
        if status == _THREADS:
            raise MachineError(
                "the system gives no more threads", advice="Ask for fewer: --threads 1."
            )
        if status == _NO_TOKEN:
            raise BuildError("no token, or one that the model does not have", where="prompt")


def _environment(actual: str) -> FloatingPointEnvironmentError:
    return FloatingPointEnvironmentError(
        "a thread does not compute by IEEE 754's defaults",
        expected="rounding to nearest, subnormal numbers kept",
        actual=actual,
    )


def _no_memory() -> MachineError:
    return MachineError("no memory to read a prompt")
