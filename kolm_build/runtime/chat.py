"""From messages to tokens and back: the one way prompts are made, for training and for use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Self

from tokenizers import Tokenizer

from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.files import ModelFiles
from kolm_build.runtime.template import rendered

Message = Mapping[str, str]
"""A turn: `role` and `content`."""

_TOKENIZER, _SETTINGS, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")

MAX_ADDED, MAX_TIMES = 1 << 20, 16
"""Most characters that a template may write of its own, and how often those of the messages."""

MAX_GROWTH = 4096
"""Most bytes that a step before or after a tokenizer's vocabulary may make of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A model's tokenizer and chat template.

    Attributes:
        tokenizer: The tokenizer, without truncation or padding.
        template: The Jinja template of a conversation.
        specials: The special tokens that the template may name.
        end_id: The token that ends an answer.
        stop_ids: Every token that ends an answer when the model says it.
    """

    tokenizer: Tokenizer
    template: str
    specials: Mapping[str, str]
    end_id: int
    stop_ids: frozenset[int]

    @classmethod
    def of(cls, files: ModelFiles) -> Self:
        """The chat of the model in `files`.

        Raises:
            InvalidRecordError: There is no tokenizer, template or end token, or a bad one.
        """
        settings = files.table(_SETTINGS)
        specials = {name: text for name in _SPECIALS if (text := _token(settings.get(name)))}
        tokenizer = _tokenizer(files)
        end_id = tokenizer.token_to_id(specials.get("eos_token", ""))
        if end_id is None:
            raise InvalidRecordError(
                "no token ends an answer",
                file=files.source,
                where=f"{_SETTINGS}: eos_token",
                expected="a token of the vocabulary",
                actual=repr(settings.get("eos_token")),
            )
        return cls(
            tokenizer=tokenizer,
            template=_template(files, settings),
            specials=specials,
            end_id=end_id,
            stop_ids=frozenset({end_id, *_stops(files)}),
        )

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation up to where the model's answer starts.

        Raises:
            InvalidRecordError: The template refuses these messages, or makes too much of them.
        """
        text = rendered(self.template, messages, self.specials)
        given = sum(len(part) for message in messages for part in message.values())
        if len(text) > MAX_ADDED + MAX_TIMES * given:
            raise InvalidRecordError(
                "the model's chat template makes too much of these messages",
                expected=f"at most {MAX_ADDED + MAX_TIMES * given} characters",
                actual=f"{len(text)} characters",
            )
        return self._encoded(text)

    def answer_ids(self, text: str) -> list[int]:
        """The tokens of an answer, the end token last."""
        return [*self._encoded(text), self.end_id]

    def text(self, ids: Iterable[int]) -> str:
        """The text of the tokens `ids`, special ones left out.

        Raises:
            InvalidRecordError: The tokenizer fails on them.
        """
        with tokenizing():
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _encoded(self, text: str) -> list[int]:
        with tokenizing():
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


@contextmanager
def tokenizing() -> Iterator[None]:
    """A block in which a tokenizer is used: what it fails with is told of the model's file.

    A tokenizer is a program that somebody else wrote, and its library panics where that is bad:
    a `BaseException` whose class has no name to import.

    Raises:
        InvalidRecordError: It fails.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InvalidRecordError(
            "the model's tokenizer fails", where=_TOKENIZER, actual=str(error)[:200]
        ) from None


def messages_of(prompt: str, *, system: str = "") -> list[Message]:
    """The conversation of one prompt, with a system text where there is one."""
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": prompt}]


def _tokenizer(files: ModelFiles) -> Tokenizer:
    data = files.read(_TOKENIZER)
    try:
        with tokenizing():
            tokenizer = Tokenizer.from_buffer(data)
            _check_growth(tokenizer)
            _check_chance(tokenizer)
            tokenizer.no_truncation()
            tokenizer.no_padding()
    except InvalidRecordError as error:
        raise error.in_file(files.source) from None
    return tokenizer


def _check_growth(tokenizer: Tokenizer) -> None:
    """Refuse steps that make so much of a text that no memory holds it."""
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder):
        said = {} if part is None else json.loads(part.__getstate__())
        if (growth := _growth(said)) > MAX_GROWTH:
            raise InvalidRecordError(
                "a step makes too much of a text",
                where=_TOKENIZER,
                expected=f"at most {MAX_GROWTH} bytes of one",
                actual=str(growth)[:80],
            )


def _check_chance(tokenizer: Tokenizer) -> None:
    """Refuse pairs that are left apart by chance: a text would have other tokens each time."""
    if dropout := getattr(tokenizer.model, "dropout", None):
        raise InvalidRecordError(
            "a tokenizer that draws by chance",
            where=f"{_TOKENIZER}: dropout",
            expected="null",
            actual=str(dropout),
        )


def _growth(step: Any) -> int:
    """About how many bytes a step makes of one, its own steps one after another."""
    kind = step.get("type")
    if kind == "Sequence":
        return prod(
            _growth(one)
            for key in ("normalizers", "pretokenizers", "decoders")
            for one in step.get(key, ())
        )
    if kind == "Replace":
        found = step["pattern"].get("String", "")
        return 1 + len(step["content"].encode()) // max(1, len(found.encode()))
    return 8 if kind == "Precompiled" else 2 if kind == "ByteLevel" else 1


def _template(files: ModelFiles, settings: Mapping[str, object]) -> str:
    if files.has(_TEMPLATE):
        found: object = _text(files, _TEMPLATE)
    else:
        found = settings.get("chat_template")
    if not isinstance(found, str):
        raise InvalidRecordError(
            "the model has no chat template",
            file=files.source,
            where=_TEMPLATE,
            advice="Choose the instruct variant of the model, or add a chat_template.jinja.",
        )
    return found


def _text(files: ModelFiles, name: str) -> str:
    try:
        return files.read(name).decode()
    except UnicodeDecodeError as error:
        raise InvalidRecordError(
            "not text in UTF-8", file=files.source, where=name, actual=str(error)[:90]
        ) from None


def _token(value: object) -> str:
    """A special token's text, given alone or as a table with its flags."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _stops(files: ModelFiles) -> list[int]:
    """The end tokens of the model's own generation settings."""
    name = "generation_config.json"
    found = files.table(name).get("eos_token_id") if files.has(name) else None
    ids = found if isinstance(found, list) else [found]
    return [token for token in ids if type(token) is int]
