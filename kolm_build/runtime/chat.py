"""From messages to tokens and back: the one way prompts are made, for training and for use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tokenizers import Tokenizer

from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.files import ModelFiles
from kolm_build.runtime.template import rendered

Message = Mapping[str, str]
"""A turn: `role` and `content`."""

_TOKENIZER, _SETTINGS, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")


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
            InvalidRecordError: The template refuses these messages.
        """
        text = rendered(self.template, messages, self.specials)
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def answer_ids(self, text: str) -> list[int]:
        """The tokens of an answer, the end token last."""
        return [*self.tokenizer.encode(text, add_special_tokens=False).ids, self.end_id]

    def text(self, ids: Iterable[int]) -> str:
        """The text of the tokens `ids`, special ones left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def messages_of(prompt: str, *, system: str = "") -> list[Message]:
    """The conversation of one prompt, with a system text where there is one."""
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": prompt}]


def _tokenizer(files: ModelFiles) -> Tokenizer:
    data = files.read(_TOKENIZER)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # noqa: BLE001 -- the library raises nothing narrower
        raise InvalidRecordError(
            "not a tokenizer", file=files.source, where=_TOKENIZER, actual=str(error)[:200]
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _template(files: ModelFiles, settings: Mapping[str, object]) -> str:
    if files.has(_TEMPLATE):
        found: object = files.read(_TEMPLATE).decode()
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
