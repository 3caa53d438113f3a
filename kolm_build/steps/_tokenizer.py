"""A GGUF file's tokenizer as a ``tokenizer.json`` and its ``tokenizer_config.json``.

Byte-level BPE only. How text is cut before merging is not in the file, only a name for it; the
names known here are written out, any other is refused: a guess would change every token count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._gguf import Gguf, Value

CONTROL, USER_DEFINED = 3, 4
SPECIALS: Mapping[str, str] = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}

_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_PATTERN = _QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _byte_level(*, use_regex: bool) -> dict[str, object]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _cut_by(pattern: str) -> dict[str, object]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How text is cut before merging.

    Attributes:
        pre_tokenizer: The value in ``tokenizer.json``.
        normalizer: The same.
        ignore_merges: Whether a piece that is a token is not merged anew.
        adds_bos: Whether a text starts with the first special token unless the file says.
    """

    pre_tokenizer: Mapping[str, object]
    normalizer: Mapping[str, object] | None = None
    ignore_merges: bool = False
    adds_bos: bool = False


def cuts() -> Mapping[str, Cut]:
    """GGUF's names of how text is cut, and what they mean."""
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "gpt-2": Cut(pre_tokenizer=_byte_level(use_regex=True)),
        "smollm": Cut(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [digits, _byte_level(use_regex=True)],
            }
        ),
        "qwen2": Cut(pre_tokenizer=_cut_by(_QWEN2_PATTERN), normalizer={"type": "NFC"}),
        "llama-bpe": Cut(pre_tokenizer=_cut_by(_LLAMA3_PATTERN), ignore_merges=True, adds_bos=True),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """A tokenizer as a GGUF file describes it.

    Attributes:
        tokens: Every token; the index is the id.
        kinds: The kind of each token.
        merges: The merges, first ones first.
        specials: ``bos_token`` and so on to an id.
        adds_bos: Whether a text starts with the first special token.
        chat_template: The template of a conversation; empty for none.
    """

    tokens: Sequence[str] = field(repr=False)
    kinds: Sequence[int] = field(repr=False)
    merges: Sequence[tuple[str, str]] = field(repr=False)
    specials: Mapping[str, int]
    adds_bos: bool
    chat_template: str
    cut: Cut

    @classmethod
    def from_gguf(cls, gguf: Gguf) -> Self:
        """The tokenizer of a GGUF file.

        Raises:
            InvalidRecordError: It is of a kind that is not supported, or a part is missing.
        """
        values = gguf.values
        _expect(values, "tokenizer.ggml.model", ("gpt2",))
        cut = cuts()[_expect(values, "tokenizer.ggml.pre", tuple(cuts()))]
        tokens = _texts(values, "tokenizer.ggml.tokens")
        adds_bos = values.get("tokenizer.ggml.add_bos_token", cut.adds_bos)
        template = values.get("tokenizer.chat_template", "")
        return cls(
            tokens=tokens,
            kinds=_kinds(values, len(tokens)),
            merges=_merges(values, frozenset(tokens)),
            specials=_specials(values, len(tokens)),
            adds_bos=adds_bos is True,
            chat_template=template if isinstance(template, str) else "",
            cut=cut,
        )

    def to_value(self) -> dict[str, object]:
        """The value of ``tokenizer.json``."""
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                _added(index, self.tokens[index], special=kind == CONTROL)
                for index, kind in enumerate(self.kinds)
                if kind in (CONTROL, USER_DEFINED)
            ],
            "normalizer": self.cut.normalizer,
            "pre_tokenizer": self.cut.pre_tokenizer,
            "post_processor": self._bos_processor() if self.adds_bos else None,
            "decoder": _byte_level(use_regex=True),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": self.cut.ignore_merges,
                "vocab": {token: index for index, token in enumerate(self.tokens)},
                "merges": self.merges,
            },
        }

    def config_value(self, max_length: int) -> dict[str, object]:
        """The value of ``tokenizer_config.json`` for texts of at most `max_length` tokens."""
        named = {name: self.tokens[index] for name, index in self.specials.items()}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length,
            **named,
        }

    def _bos_processor(self) -> dict[str, object]:
        if "bos_token" not in self.specials:
            raise InvalidRecordError(
                "a text shall start with a token that has no id", where=SPECIALS["bos_token"]
            )
        index = self.specials["bos_token"]
        bos = self.tokens[index]
        first = {"SpecialToken": {"id": bos, "type_id": 0}}
        a, b = ({"Sequence": {"id": name, "type_id": at}} for at, name in enumerate("AB"))
        return {
            "type": "TemplateProcessing",
            "single": [first, a],
            "pair": [first, a, {"SpecialToken": {"id": bos, "type_id": 1}}, b],
            "special_tokens": {bos: {"id": bos, "ids": [index], "tokens": [bos]}},
        }


def _added(index: int, token: str, *, special: bool) -> dict[str, object]:
    return {
        "id": index,
        "content": token,
        "special": special,
        "normalized": False,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
    }


def _expect(values: Mapping[str, Value], key: str, known: Sequence[str]) -> str:
    value = values.get(key)
    if not isinstance(value, str) or value not in known:
        raise InvalidRecordError(
            "a tokenizer that is not supported",
            where=key,
            expected=" or ".join(map(repr, known)),
            actual="nothing" if value is None else repr(value)[:80],
            advice="Import the model from its safetensors folder instead.",
        )
    return value


def _texts(values: Mapping[str, Value], key: str) -> Sequence[str]:
    found = values.get(key)
    if not isinstance(found, tuple) or not all(type(text) is str for text in found):
        raise InvalidRecordError("a list of text is missing", where=key)
    if len(set(found)) != len(found):
        raise InvalidRecordError("a text is there twice", where=key)
    return found


def _kinds(values: Mapping[str, Value], count: int) -> Sequence[int]:
    kinds = values.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, tuple) or len(kinds) != count:
        raise InvalidRecordError(
            "every token needs a kind", where="tokenizer.ggml.token_type", expected=f"{count} kinds"
        )
    return kinds


def _merges(values: Mapping[str, Value], tokens: frozenset[str]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for text in _texts(values, "tokenizer.ggml.merges"):
        left, _, right = text.partition(" ")
        if not {left, right, left + right} <= tokens:
            raise InvalidRecordError(
                "not a merge of two tokens to a third",
                where="tokenizer.ggml.merges",
                actual=repr(text)[:80],
            )
        merges.append((left, right))
    return merges


def _specials(values: Mapping[str, Value], count: int) -> Mapping[str, int]:
    specials: dict[str, int] = {}
    for name, key in SPECIALS.items():
        index = values.get(key)
        if index is None:
            continue
        if type(index) is not int or not 0 <= index < count:
            raise InvalidRecordError(
                "a token id out of range",
                where=key,
                expected=f"0 to {count - 1}",
                actual=str(index)[:80],
            )
        specials[name] = index
    return specials
