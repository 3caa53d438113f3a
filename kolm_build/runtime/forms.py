"""Answers of a given form: which tokens may come next (GEN-14 to GEN-18).

Labels are a tree of their tokens. Regular expressions and JSON Schemas are grammars that
llguidance follows: which tokens it allows depends on the grammar, the vocabulary and the tokens so
far, and on nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from kolm_build.errors import InvalidRecordError, MachineError
from kolm_build.runtime.chat import Chat
from kolm_build.runtime.json_schema import check
from kolm_build.runtime.settings import Form, JsonSchema, Labels, Regex

Mask = np.ndarray[Any, np.dtype[np.bool_]]
"""Which tokens may come, shape (vocabulary,)."""

_LIBRARY = "llguidance"

_SPELLING: Mapping[str, object] = {
    "whitespace_flexible": False,
    "key_separator": ": ",
    "item_separator": ", ",
    "lenient": False,
    "coerce_one_of": False,
}
"""JSON as Python's `json.dumps` writes it: white space has one spelling, and comes to an end."""


class Constraint(Protocol):
    """What one answer may go on with."""

    def allowed(self) -> Mask:
        """The tokens that may come next, one or more."""

    def take(self, token: int) -> None:
        """The answer goes on with `token`, an allowed one."""


Begin = Callable[[], Constraint]
"""Makes the constraint of a new answer."""


def begin(form: Form, chat: Chat, words: int) -> Begin:
    """What makes the constraints of answers of `form`.

    Args:
        form: The form.
        chat: The model's tokenizer and end tokens.
        words: Number of logits of the model.

    Raises:
        InvalidRecordError: No answer has that form, or it is malformed.
        MachineError: The form needs a library that is not installed.
    """
    if isinstance(form, Labels):
        return _labels(form.labels, chat, words)
    return _grammar(form, chat, words)


# --------------------------------------------------------------------------------------- labels

Branches = dict[int, Any]
"""The tree of token sequences: token to what may follow."""


class _Path:
    """A way down a tree of tokens."""

    def __init__(self, tree: Branches, words: int) -> None:
        self._at = tree
        self._words = words

    def allowed(self) -> Mask:
        """The branches here."""
        mask = np.zeros(self._words, dtype=np.bool_)
        mask[list(self._at)] = True
        return mask

    def take(self, token: int) -> None:
        """Go down."""
        self._at = self._at[token]


def _labels(labels: Sequence[str], chat: Chat, words: int) -> Begin:
    if not labels or not all(labels):
        raise InvalidRecordError(
            "a label set needs labels, and none may be empty",
            where=Labels.word,
            actual=repr(labels),
            advice="Give one label a line.",
        )
    tree: Branches = {}
    for label in labels:
        at = tree
        for token in chat.answer_ids(label):
            if token >= words:
                raise InvalidRecordError(
                    "a label has a token that the model does not have",
                    where=repr(label)[:80],
                    expected=f"below {words}",
                    actual=str(token),
                )
            at = at.setdefault(token, {})
    return lambda: _Path(tree, words)


# ------------------------------------------------------------------------------------- grammars


class _Followed:
    """A grammar on its way.

    Args:
        form: What it is of, for messages.
        matcher: llguidance's, at the start.
        words: Number of logits.
    """

    def __init__(self, form: Regex | JsonSchema, matcher: Any, words: int) -> None:
        self._form = form
        self._matcher = matcher
        self._words = words

    def allowed(self) -> Mask:
        """What the grammar says.

        Raises:
            InvalidRecordError: No token can follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self._words].astype(np.bool_)
        if self._matcher.is_error():
            raise _unusable(self._form, self._matcher.get_error())
        if not mask.any():
            raise _unusable(self._form, "")
        return mask

    def take(self, token: int) -> None:
        """Tell the grammar."""
        if not self._matcher.consume_token(token):
            raise _unusable(self._form, self._matcher.get_error())


def _unusable(form: Regex | JsonSchema, reason: str) -> InvalidRecordError:
    stuck = not reason or reason.startswith("NoExtension")
    return InvalidRecordError(
        "no answer can have this form",
        where=form.word,
        actual="no token of the vocabulary can follow" if stuck else _plain(form, reason),
        advice=_ADVICE[type(form)],
    )


_ADVICE = {
    Regex: "It is in the syntax of Rust's regex: no look-around, no references back; a bracket that"
    " is meant as itself needs a backslash.",
    JsonSchema: "Change the schema so that there is JSON that it allows.",
}


def _plain(form: Regex | JsonSchema, reason: str) -> str:
    """Of the library's report, drawn over several lines, what it says of a regular expression."""
    said = re.search(r"^error: (.+)$", reason, re.MULTILINE)
    if said is None or not isinstance(form, Regex):
        return reason[:300]
    return f"{said[1][:200]}: {form.pattern[:80]!r}"


def _grammar(form: Regex | JsonSchema, chat: Chat, words: int) -> Begin:
    library = _library()
    matcher = library.LLMatcher(
        _vocabulary(chat.tokenizer.to_str(), words, _ends(chat, words)),
        _text(library, form),
        log_level=0,
        limits=library.LLParserLimits(verbose_errors=False),
    )
    if matcher.is_error():
        raise _unusable(form, matcher.get_error())
    _Followed(form, matcher.deep_copy(), words).allowed()  # one without a first token is refused
    return lambda: _Followed(form, matcher.deep_copy(), words)


def _text(library: Any, form: Regex | JsonSchema) -> str:
    if isinstance(form, Regex):
        ending = len(form.pattern) - len(form.pattern.rstrip("\\"))
        if ending % 2:  # the library leaves it out
            raise _unusable(form, "a backslash ends the regular expression")
        return str(library.LLMatcher.grammar_from_regex(form.pattern))
    check(form.text)
    try:
        return str(library.LLMatcher.grammar_from_json_schema(form.text, overrides=_SPELLING))
    except ValueError as error:  # NaN, too many digits or levels: its JSON is stricter
        raise _unusable(form, str(error)) from None


def _ends(chat: Chat, words: int) -> tuple[int, ...]:
    """The end tokens that the model can say."""
    found = tuple(sorted(one for one in chat.stop_ids if 0 <= one < words))
    if not found:
        raise _unfollowed("no token that the model can say ends an answer")
    return found


def _unfollowed(reason: str) -> InvalidRecordError:
    return InvalidRecordError(
        "grammars cannot be followed with this tokenizer",
        where="tokenizer.json",
        actual=reason[:200],
        advice="Name labels, or leave the form open.",
    )


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: str, words: int, stop_ids: tuple[int, ...]) -> Any:
    """The library's own form of a tokenizer: some hundred milliseconds for a large one."""
    try:
        return _library().LLTokenizer(tokenizer, n_vocab=words, eos_token=list(stop_ids))
    except ValueError as error:
        raise _unfollowed(str(error)) from None


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MachineError(
            "answers by a regular expression or JSON Schema need a library",
            expected=f"the distribution {_LIBRARY}",
            actual="not installed",
            advice="pip install 'kolm-build[run]'",
        ) from None
    return llguidance
