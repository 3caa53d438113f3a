"""A model folder's tokenizer as a GGUF file's metadata: the inverse of `_tokenizer` (EXPORT-10).

GGUF has a name for how text is cut before merging, and no more. A ``tokenizer.json`` that cuts as
no known name does is refused: another cut would change the tokens of every prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._gguf_writer import Entry
from kolm_build.steps._model_tree import Table, read_tokenizer
from kolm_build.steps._tokenizer import CONTROL, SPECIALS, USER_DEFINED, Cut, cuts

FILE = "tokenizer.json"

_NORMAL, _UNUSED = 1, 5
_PIECES = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk")
_PLAIN = "gpt-2"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerEntries:
    """A tokenizer as GGUF says it.

    Attributes:
        entries: The metadata.
        size: Number of tokens, the unused ones included.
    """

    entries: Mapping[str, Entry] = field(repr=False)
    size: int


def read_entries(folder: Path, config: Table) -> TokenizerEntries:
    """The tokenizer of the model folder `folder`, whose ``config.json`` is `config`.

    Raises:
        InvalidRecordError: It is of a kind that GGUF has no name for, or a part is bad.
    """
    tokenizer, settings, template = read_tokenizer(folder)
    try:
        return _entries(tokenizer, settings, config, template)
    except InvalidRecordError as error:
        raise error.in_file(FILE) from None


def _entries(tokenizer: Table, settings: Table, config: Table, template: str) -> TokenizerEntries:
    model = _model(tokenizer)
    tokens, kinds = _tokens(model, tokenizer, _vocabulary_size(config))
    ids = {token: index for index, token in enumerate(tokens)}
    specials = _specials(settings, config, ids)
    first = _first_tokens(tokenizer.get("post_processor"))
    entries: dict[str, Entry] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _cut_name(tokenizer, model),
        "tokenizer.ggml.tokens": tuple(tokens),
        "tokenizer.ggml.token_type": tuple(kinds),
        "tokenizer.ggml.merges": _merges(model),
        **{SPECIALS[name]: index for name, index in specials.items()},
        "tokenizer.ggml.add_bos_token": _adds_bos(first, tokens, specials),
        "tokenizer.ggml.add_eos_token": False,
    }
    if template:
        entries["tokenizer.chat_template"] = template
    return TokenizerEntries(entries=entries, size=len(tokens))


def _model(tokenizer: Table) -> Table:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not _is_byte_level(tokenizer):
        raise InvalidRecordError(
            "a tokenizer that is not supported",
            where="model.type",
            expected="byte-level BPE",
            actual=repr(model.get("type") if isinstance(model, dict) else model)[:80],
        )
    for name in _PIECES:
        if model.get(name):
            raise InvalidRecordError(
                "a tokenizer that is not supported", where=f"model.{name}", expected="none"
            )
    return model


def _is_byte_level(tokenizer: Table) -> bool:
    decoder = tokenizer.get("decoder")
    return isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"


def _vocabulary_size(config: Table) -> int:
    size = config.get("vocab_size")
    if type(size) is not int or not 0 < size <= 1 << 24:
        raise InvalidRecordError(
            "a size is missing or out of range", where="config.json: vocab_size", actual=repr(size)
        )
    return size


def _tokens(model: Table, tokenizer: Table, size: int) -> tuple[list[str], list[int]]:
    """Every token and its kind; a row of the embedding without a token is unused."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    kinds = [_UNUSED] * size
    vocabulary, added = model.get("vocab"), tokenizer.get("added_tokens")
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        raise InvalidRecordError("the vocabulary is missing", where="model.vocab")
    named = [(index, text, _NORMAL) for text, index in vocabulary.items()]
    named += [
        (one.get("id"), one.get("content"), CONTROL if one.get("special") else USER_DEFINED)
        for one in added
        if isinstance(one, dict)
    ]
    for index, text, kind in named:
        if type(index) is not int or type(text) is not str or not 0 <= index < size:
            raise InvalidRecordError(
                "a token id out of range",
                where=repr(text)[:80],
                expected=f"0 to {size - 1}, the rows of the embedding",
                actual=repr(index)[:80],
            )
        tokens[index], kinds[index] = text, kind
    if len(set(tokens)) != size:
        raise InvalidRecordError("a token is there twice", where="model.vocab")
    return tokens, kinds


def _merges(model: Table) -> tuple[str, ...]:
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise InvalidRecordError("the merges are missing", where="model.merges")
    texts = tuple(one if isinstance(one, str) else " ".join(map(str, one)) for one in merges)
    for text in texts:
        if text.count(" ") != 1:
            raise InvalidRecordError(
                "not a merge of two tokens", where="model.merges", actual=repr(text)[:80]
            )
    return texts


def _cut_name(tokenizer: Table, model: Table) -> str:
    """GGUF's name of how text is cut before merging."""
    if not model.get("merges") and _plain(tokenizer.get("normalizer")) is None:
        return _PLAIN  # every byte is a token, however text is cut
    for name, cut in cuts().items():
        if _cuts_as(cut, tokenizer, model):
            return name
    raise InvalidRecordError(
        "text is cut before merging in a way that GGUF has no known name for",
        where="pre_tokenizer",
        expected="as " + ", ".join(cuts()),
        actual=repr(_plain(tokenizer.get("pre_tokenizer")))[:200],
    )


def _cuts_as(cut: Cut, tokenizer: Table, model: Table) -> bool:
    return (
        _plain(tokenizer.get("pre_tokenizer")) == _plain(cut.pre_tokenizer)
        and _plain(tokenizer.get("normalizer")) == _plain(cut.normalizer)
        and bool(model.get("ignore_merges")) == cut.ignore_merges
    )


def _plain(value: object) -> object:
    """`value` without what changes no token: the offsets' trimming, a sequence of one."""
    if isinstance(value, Mapping):
        table = {name: _plain(one) for name, one in value.items() if name != "trim_offsets"}
        for inner in ("pretokenizers", "normalizers"):
            parts = table.get(inner)
            if isinstance(parts, list) and len(parts) == 1:
                return parts[0]
        return table
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _specials(settings: Table, config: Table, ids: Mapping[str, int]) -> dict[str, int]:
    """``bos_token`` and so on to an id: as the tokenizer names them, else as the model does."""
    found: dict[str, int] = {}
    for name in SPECIALS:
        token = settings.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        index = ids.get(text) if isinstance(text, str) else config.get(f"{name}_id")
        if type(index) is int and 0 <= index < len(ids):
            found[name] = index
        elif index is not None or isinstance(text, str):
            raise InvalidRecordError(
                "a special token that is not in the vocabulary",
                where=f"tokenizer_config.json: {name}",
                actual=repr(text or index)[:80],
            )
    return found


def _first_tokens(processor: object) -> Sequence[str]:
    """The special tokens that every text begins with."""
    found: list[str] = []
    for one in _processors(processor):
        if one.get("type") == "ByteLevel":
            continue
        single = one.get("single") if one.get("type") == "TemplateProcessing" else None
        names = [_special(part) for part in single] if isinstance(single, list) else [""]
        if not names or names[-1] is not None:
            raise InvalidRecordError(
                "what is added to a text has no name in GGUF",
                where="post_processor",
                expected="special tokens before the text, or none",
                actual=repr(one)[:120],
            )
        found += [name for name in names if name is not None]
    return found


def _processors(processor: object) -> Iterator[Mapping[str, object]]:
    if not isinstance(processor, dict):
        return
    inner = processor.get("processors")
    if processor.get("type") == "Sequence" and isinstance(inner, list):
        for one in inner:
            yield from _processors(one)
    else:
        yield processor


def _special(part: object) -> str | None:
    """The special token that a part of a template is; None for the text."""
    token = part.get("SpecialToken") if isinstance(part, dict) else None
    return str(token.get("id")) if isinstance(token, dict) else None


def _adds_bos(first: Sequence[str], tokens: Sequence[str], specials: Mapping[str, int]) -> bool:
    bos = [tokens[specials["bos_token"]]] if "bos_token" in specials else []
    if first and list(first) != bos:
        raise InvalidRecordError(
            "what is added to a text has no name in GGUF",
            where="post_processor",
            expected=f"{bos[0]!r} or nothing" if bos else "nothing",
            actual=repr(list(first))[:80],
        )
    return bool(first)
