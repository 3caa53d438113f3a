"""A teacher's logits over a set of rows, kept as files (DIST-80 to DIST-85).

Of every answer token the likeliest tokens' log-probabilities and the mass of all others. What a
row's tokens were is kept as a digest, so that nobody learns from the logits of another row.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.runtime.loading import Model
from kolm_build.steps._sequences import Continuation
from kolm_build.steps._weights import Array, Weight, read_weights, write_weights

FORMAT = "teacher-logits/1"
HEAD, ROWS, TENSORS = "logits.json", "rows.jsonl", "logits.safetensors"
DTYPES: Mapping[str, str] = {"token_ids": "I32", "log_probabilities": "F32", "rest": "F32"}
"""The tensors of the file, and what they are in it."""

_IN_MEMORY = {"I32": "<i4", "F32": "<f4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeliest:
    """What a teacher expects at some tokens.

    Attributes:
        token_ids: The likeliest tokens, the likeliest first, of equals that of the smaller id;
            whole numbers, shape (tokens, k).
        log_probabilities: Theirs, float32, shape (tokens, k).
        rest: The probability of all other tokens together, float32, shape (tokens,).
    """

    token_ids: torch.Tensor
    log_probabilities: torch.Tensor
    rest: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, *, temperature: float, top_k: int) -> Self:
        """The `top_k` likeliest by `logits` of shape (tokens, words), divided by `temperature`."""
        known = torch.log_softmax(logits / temperature, dim=-1)
        values, ids = known.sort(dim=-1, descending=True, stable=True)
        rest = torch.exp(values[:, top_k:]).sum(dim=-1)
        return cls(token_ids=ids[:, :top_k], log_probabilities=values[:, :top_k], rest=rest)

    def part(self, begin: int, end: int) -> Likeliest:
        """That of the tokens from `begin` to `end`."""
        return Likeliest(
            token_ids=self.token_ids[begin:end].long(),
            log_probabilities=self.log_probabilities[begin:end],
            rest=self.rest[begin:end],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all rows share.

    Attributes:
        temperature: The teacher's logits were divided by it; decimal text.
        top_k: How many tokens were asked for; fewer where the teacher does not have as many.
        words: How many logits the teacher gives, the width of its output.
        vocabulary: The digest of its tokens, `digest_of_vocabulary`.
    """

    temperature: str
    top_k: int
    words: int
    vocabulary: str

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "format": FORMAT,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "words": self.words,
            "vocabulary": self.vocabulary,
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        form = fields.text("format")
        if form != FORMAT:
            raise InvalidRecordError(
                "another format", where="format", expected=FORMAT, actual=repr(form)[:80]
            )
        made = cls(
            temperature=fields.text("temperature"),
            top_k=fields.integer("top_k"),
            words=fields.integer("words"),
            vocabulary=fields.text("vocabulary"),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Which row's logits are kept.

    Attributes:
        id: The row's own digest, as text.
        tokens: How many tokens its answer has, end included.
        sequence: The digest of its prompt's and answer's tokens, `digest_of_sequence`.
    """

    id: str
    tokens: int
    sequence: str

    @classmethod
    def of(cls, name: str, sequence: Continuation) -> Self:
        """The row called `name` as the tokens `sequence`."""
        return cls(id=name, tokens=sequence.tokens, sequence=digest_of_sequence(sequence))

    @property
    def line(self) -> bytes:
        """Its line in rows.jsonl."""
        value = {"id": self.id, "sequence": self.sequence, "tokens": self.tokens}
        return strict_json.dumps(value) + b"\n"

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row that a line holds, strict."""
        fields = Fields(value)
        made = cls(
            id=fields.text("id"), tokens=fields.integer("tokens"), sequence=fields.text("sequence")
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherLogits:
    """The logits of a teacher over some rows.

    Attributes:
        head: What all rows share.
        rows: The rows, in order.
        likeliest: Of all their answers' tokens, one row after the other.
    """

    head: Head
    rows: Sequence[Row]
    likeliest: Likeliest

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Those in `folder`.

        Raises:
            InvalidRecordError: A file is not as it must be, or they do not fit together.
        """
        head = _head(folder / HEAD)
        rows = _rows(folder / ROWS)
        tokens, kept = sum(row.tokens for row in rows), min(head.top_k, head.words)
        arrays = _arrays(folder / TENSORS, tokens=tokens, kept=kept, words=head.words)
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return cls(head=head, rows=rows, likeliest=Likeliest(**tensors))


class Writer:
    """Writes the logits of one row after another, in memory that does not grow with their number.

    Args:
        head: What all rows share.
        out: The folder that they are for.
        scratch: A folder for what is not finished.
    """

    def __init__(self, head: Head, out: Path, scratch: Path) -> None:
        self._out = out
        self._kept = min(head.top_k, head.words)
        self._tokens = 0
        self._parts = {name: scratch / name for name in DTYPES}
        for path in self._parts.values():
            path.write_bytes(b"")
        (out / HEAD).write_bytes(strict_json.dumps(head.to_value()))
        (out / ROWS).write_bytes(b"")

    def add(self, row: Row, likeliest: Likeliest) -> None:
        """Write what `likeliest` says of the tokens of `row`."""
        with (self._out / ROWS).open("ab") as file:
            file.write(row.line)
        for name, dtype in DTYPES.items():
            with self._parts[name].open("ab") as file:
                file.write(getattr(likeliest, name).numpy().astype(_IN_MEMORY[dtype]).tobytes())
        self._tokens += row.tokens

    def done(self) -> None:
        """Write the file of tensors."""
        shapes = {
            "token_ids": (self._tokens, self._kept),
            "log_probabilities": (self._tokens, self._kept),
            "rest": (self._tokens,),
        }
        weights = (
            Weight(name=name, dtype=dtype, shape=shapes[name], read=self._reader(name))
            for name, dtype in DTYPES.items()
        )
        write_weights(self._out / TENSORS, weights, metadata={})

    def _reader(self, name: str) -> Any:
        path = self._parts[name]
        return lambda: np.memmap(path, np.uint8, "r").data


def digest_of_vocabulary(model: Model) -> str:
    """The digest of the tokens of `model`, added ones too, by id."""
    words = model.chat.tokenizer.get_vocab(with_added_tokens=True)
    found = hashlib.sha256()
    for number, word in sorted((number, word.encode()) for word, number in words.items()):
        found.update(struct.pack("<II", number, len(word)) + word)
    return f"sha256:{found.hexdigest()}"


def digest_of_sequence(sequence: Continuation) -> str:
    """The digest of where the answer of `sequence` starts, and of its tokens."""
    packed = np.array([sequence.start, *sequence.ids], "<u4").tobytes()
    return f"sha256:{hashlib.sha256(packed).hexdigest()}"


def check_row(kept: Row, row: Row, number: int) -> None:
    """Refuse a row `row`, the `number`-th, where the teacher read `kept`.

    Raises:
        InvalidDataError: It is another row, or other tokens of it.
    """
    if kept == row:
        return
    same = kept.id == row.id
    raise InvalidDataError(
        "a row has other tokens than those the teacher read"
        if same
        else "a row is not the one the teacher read",
        file=ROWS,
        where=f"row {number} ({row.id})",
        expected=f"{kept.tokens} answer tokens, {kept.sequence}" if same else kept.id,
        actual=f"{row.tokens} answer tokens, {row.sequence}" if same else row.id,
        advice="Teacher and student must have one tokenizer and one chat template."
        if same
        else "Name the same rows for the teacher and the student.",
    )


def _head(path: Path) -> Head:
    try:
        return Head.from_value(strict_json.loads(path.read_bytes()))
    except InvalidRecordError as error:
        raise error.in_file(path.name) from None


def _rows(path: Path) -> Sequence[Row]:
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found.append(Row.from_value(strict_json.loads(line)))
        except InvalidRecordError as error:
            raise error.under(f"row {number}").in_file(path.name) from None
    return found


def _arrays(path: Path, *, tokens: int, kept: int, words: int) -> Mapping[str, Array]:
    """The arrays of the file `path`, of the shapes that they must have.

    Raises:
        InvalidRecordError: They are others, or name tokens beyond `words`.
    """
    wanted = [
        (name, dtype, (tokens,) if name == "rest" else (tokens, kept))
        for name, dtype in sorted(DTYPES.items())
    ]
    weights = read_weights(path, dtypes=("F32", "I32"))
    found = sorted((one.name, one.dtype, one.shape) for one in weights)
    if found != wanted:
        raise InvalidRecordError(
            "other tensors than its rows need",
            file=path.name,
            expected=f"{wanted}",
            actual=f"{found}",
        )
    arrays = {
        one.name: np.frombuffer(one.read(), _IN_MEMORY[one.dtype]).reshape(one.shape)
        for one in weights
    }
    ids = arrays["token_ids"]
    if ids.size and not 0 <= ids.min() <= ids.max() < words:
        raise InvalidRecordError(
            "a token that the teacher lacks",
            file=path.name,
            where="token_ids",
            expected=f"0 to {words - 1}",
        )
    return arrays
