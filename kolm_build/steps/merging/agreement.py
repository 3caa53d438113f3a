"""Whether models can be merged: one architecture, one vocabulary, the same tensors (MERGE-2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kolm_build.core.fields import shown
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._model_tree import CONFIG, WEIGHTS, Table, read_table
from kolm_build.steps._weights import Weight, read_weights

TOKENIZER = "tokenizer.json"

FREE_KEYS = frozenset(
    {
        "_name_or_path",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "max_position_embeddings",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""The keys of config.json that say nothing of what a weight means."""

_READS = ("model", "normalizer", "pre_tokenizer")
"""The parts of tokenizer.json that decide which ids a text has, beside the added tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTree:
    """A model folder.

    Attributes:
        role: Which input it is, for errors.
        folder: Where it lies.
        weights: Its tensors, by name, mapped and not read.
        config: What config.json says.
    """

    role: str
    folder: Path
    weights: Mapping[str, Weight]
    config: Table

    @classmethod
    def open(cls, role: str, folder: Path) -> Self:
        """The model in `folder`.

        Raises:
            InvalidRecordError: It is not a model folder.
        """
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise InvalidRecordError(
                    "no such file",
                    file=f"{role}/{name}",
                    expected="a model: its configuration, tokenizer and weights",
                    advice="An adapter is merged into its base first.",
                )
        try:
            weights = {weight.name: weight for weight in read_weights(folder / WEIGHTS)}
            config = read_table(folder, CONFIG)
        except InvalidRecordError as error:
            raise _below(error, role) from None
        return cls(role=role, folder=folder, weights=weights, config=config)

    def tokenizer(self) -> Table:
        """What tokenizer.json says; empty where there is none."""
        try:
            return read_table(self.folder, TOKENIZER)
        except InvalidRecordError as error:
            raise _below(error, self.role) from None


def check_alike(base: ModelTree, others: Sequence[ModelTree]) -> None:
    """Refuse models that are not all of one kind.

    Raises:
        InvalidRecordError: One has another architecture, vocabulary, tensor or shape than `base`.
    """
    tokenizer = base.tokenizer()
    for other in others:
        _check_equal(_kind(base.config), _kind(other.config), f"{other.role}/{CONFIG}")
        _check_tokenizer(tokenizer, other)
        _check_tensors(base, other)


def _kind(config: Table) -> Table:
    return {key: value for key, value in config.items() if key not in FREE_KEYS}


def _token_table(tokenizer: Table) -> Table:
    """What decides the ids of a text, each added token under its id."""
    added = tokenizer.get("added_tokens")
    tokens = {
        f"added_tokens[{token.get('id')}]": token.get("content")
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict)
    }
    return {key: tokenizer.get(key) for key in _READS} | tokens


def _check_tokenizer(wanted: Table, other: ModelTree) -> None:
    found, file = other.tokenizer(), f"{other.role}/{TOKENIZER}"
    if bool(wanted) != bool(found):
        one, two = (f"{'a' if table else 'no'} {TOKENIZER}" for table in (wanted, found))
        raise InvalidRecordError(
            "models of different kinds cannot be merged",
            file=file,
            expected=f"as the base: {one}",
            actual=two,
        )
    _check_equal(_token_table(wanted), _token_table(found), file)


def _check_equal(wanted: Table, found: Table, file: str) -> None:
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            where, one, other = _difference(key, wanted.get(key), found.get(key))
            raise InvalidRecordError(
                "models of different kinds cannot be merged",
                file=file,
                where=where,
                expected=f"as the base: {shown(one)}",
                actual=shown(other),
            )


def _difference(where: str, one: object, other: object) -> tuple[str, object, object]:
    """The first place, by name, at which two values that differ do so."""
    while isinstance(one, dict) and isinstance(other, dict):
        key = min(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        where, one, other = f"{where}.{key}", one.get(key), other.get(key)
    return where, one, other


def _check_tensors(base: ModelTree, other: ModelTree) -> None:
    for name in sorted(base.weights.keys() | other.weights.keys()):
        wanted, found = _shape(base, name), _shape(other, name)
        if wanted != found:
            raise InvalidRecordError(
                "the models' tensors differ",
                file=f"{other.role}/{WEIGHTS}",
                where=name,
                expected=f"as the base: {wanted}",
                actual=found,
            )


def _shape(tree: ModelTree, name: str) -> str:
    weight = tree.weights.get(name)
    return "no such tensor" if weight is None else f"shape {weight.shape}"


def _below(error: InvalidRecordError, role: str) -> InvalidRecordError:
    error.file = f"{role}/{error.file}"
    return error
