"""Leakage: training rows that are, or nearly are, held-out rows (spec/dataset.md).

Two texts are near duplicates where the Jaccard similarity of their sets of character 13-grams is
at least 0.8. The search is exact. Order each text's grams from the rarest to the commonest: two
texts that similar must share a gram among the first ``n - ceil(0.8 n) + 1`` of both, so only
texts that meet in such a prefix are compared. (The prefix filter of Chaudhuri et al., "A
primitive operator for similarity joins in data cleaning", 2006.) Integers only.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

GRAM = 13
NEAR_NUMERATOR, NEAR_DENOMINATOR = 4, 5
"""Near means a similarity of at least 4/5."""

EXACT, NORMALISED, NEAR = "exact", "normalised", "near"

_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A training text that a held-out text gives away.

    Attributes:
        train: Index of the training text.
        holdout: Index of the held-out text.
        kind: `EXACT`, `NORMALISED` or `NEAR`.
        shared: Number of grams in both texts.
        either: Number of grams in one text or the other.
    """

    train: int
    holdout: int
    kind: str
    shared: int
    either: int


def find_leaks(train: Sequence[str], holdout: Sequence[str]) -> Iterator[Leak]:
    """One leak for each text of `train` that has any, in the order of `train`.

    Of several held-out texts the first one of the strongest kind is named.
    """
    exact = _first_index(holdout)
    forms = [normalised(text) for text in holdout]
    same_form = _first_index(forms)
    train_forms = [normalised(text) for text in train]
    near = _NearIndex(forms, train_forms)
    for index, (text, form) in enumerate(zip(train, train_forms, strict=True)):
        if text in exact:
            yield Leak(train=index, holdout=exact[text], kind=EXACT, shared=1, either=1)
        elif form in same_form:
            yield Leak(train=index, holdout=same_form[form], kind=NORMALISED, shared=1, either=1)
        elif (found := near.find(index)) is not None:
            yield Leak(train=index, holdout=found[0], kind=NEAR, shared=found[1], either=found[2])


def normalised(text: str) -> str:
    """`text` in NFKC, case folded, each run of white space and punctuation one space.

    A text of nothing else stays as it is.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    marks = (" " if unicodedata.category(sign)[0] == "P" else sign for sign in folded)
    return _SPACES.sub(" ", "".join(marks)).strip() or text


def grams(form: str) -> frozenset[str]:
    """The character 13-grams of a normalised text; a shorter text is one gram."""
    return frozenset(form[at : at + GRAM] for at in range(max(1, len(form) - GRAM + 1)))


def is_near(shared: int, either: int) -> bool:
    """Whether `shared` of `either` grams make near duplicates."""
    return shared * NEAR_DENOMINATOR >= either * NEAR_NUMERATOR


def _first_index(texts: Sequence[str]) -> Mapping[str, int]:
    return {text: index for index, text in reversed(list(enumerate(texts)))}


class _NearIndex:
    """Held-out texts by the rarest grams of each, to be asked for each training text.

    Args:
        holdout: The held-out texts, normalised.
        train: The training texts, normalised. Of their grams only those that are in a held-out
            text are kept; the others are the rarest of all.
    """

    __slots__ = ("_by_gram", "_holdout", "_often", "_train")

    def __init__(self, holdout: Sequence[str], train: Sequence[str]) -> None:
        self._holdout = [grams(form) for form in holdout]
        self._often = Counter(gram for found in self._holdout for gram in found)
        known = frozenset(self._often)
        sets = (grams(form) for form in train)
        self._train = [(len(found), found & known) for found in sets]
        self._often.update(gram for _, found in self._train for gram in found)
        self._by_gram: dict[str, list[int]] = defaultdict(list)
        for index, found in enumerate(self._holdout):
            for gram in self._prefix(len(found), found):
                self._by_gram[gram].append(index)

    def _prefix(self, size: int, known: frozenset[str]) -> list[str]:
        """The grams of which a near duplicate shares one: `known` of a text's `size` rarest."""
        count = size - -(-size * NEAR_NUMERATOR // NEAR_DENOMINATOR) + 1 - (size - len(known))
        if count <= 0:
            return []
        return sorted(known, key=lambda gram: (self._often[gram], gram))[:count]

    def find(self, index: int) -> tuple[int, int, int] | None:
        """The first near duplicate of training text `index`, the grams in both, those in either."""
        size, known = self._train[index]
        met = {at for gram in self._prefix(size, known) for at in self._by_gram.get(gram, ())}
        for at in sorted(met):
            theirs = self._holdout[at]
            shared = len(known & theirs)
            either = size + len(theirs) - shared
            if is_near(shared, either):
                return at, shared, either
        return None
