import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.steps import _leakage
from kolm_build.steps._leakage import find_leaks, normalised

WORDS = st.lists(
    st.sampled_from(["heart", "lung", "night", "pain", "acute", "of", "left", "12", "3.5"]),
    max_size=12,
)
TEXTS = st.lists(WORDS.map(" ".join), min_size=1, max_size=8)


def shingles(text):
    form = normalised(text)
    return {form[at : at + 13] for at in range(len(form) - 12)} or {form}


def is_leak(text, other):
    """The rule as the spec says it, without an index."""
    if normalised(text) == normalised(other):
        return True
    a, b = shingles(text), shingles(other)
    return 5 * len(a & b) >= 4 * len(a | b)


@settings(max_examples=200)
@given(TEXTS, TEXTS)
def test_the_search_finds_what_comparing_all_pairs_finds(train, holdout):
    """DATA-13: the search MUST be exact."""
    found = {leak.train for leak in find_leaks(train, holdout)}
    expected = {
        index for index, text in enumerate(train) if any(is_leak(text, other) for other in holdout)
    }
    assert found == expected


@settings(max_examples=200)
@given(WORDS, st.integers(0, 60), st.sampled_from(["x", "", "pain "]))
def test_one_edit_of_a_long_text_is_judged_by_its_grams(words, at, edit):
    text = " ".join(words)
    other = text[:at] + edit + text[at + 1 :]
    assert bool(list(find_leaks([text], [other]))) == is_leak(text, other)


def test_a_near_leak_tells_its_grams():
    text = "a" * 10 + " patient with a burning pain in the left hand since monday"
    (leak,) = find_leaks([text], [text + "s"])
    a, b = shingles(text), shingles(text + "s")
    assert (leak.kind, leak.shared, leak.either) == (_leakage.NEAR, len(a & b), len(a | b))


def test_the_strongest_kind_is_named():
    held = ["Heart failure!", "heart failure", "Heart failure"]
    kinds = [leak.kind for leak in find_leaks(["heart failure", "HEART FAILURE?"], held)]
    assert kinds == [_leakage.EXACT, _leakage.NORMALISED]


def test_normalising_folds_case_marks_and_spaces_but_keeps_signs():
    assert normalised("  Straße,\t(Left)  ") == "strasse left"
    assert normalised("3 + 4") != normalised("3 = 4")
    assert normalised("?!") == "?!"
    assert normalised("\ufb01ne") == "fine"


def test_ten_thousand_rows_are_few_comparisons():
    """Rows from one template meet in their common words, which the rarest grams pass over."""
    draw = random.Random(0)
    words = [f"w{draw.randrange(16**6):06x}" for _ in range(3000)]
    texts = [
        f"The patient reports {draw.choice(words)} {draw.choice(words)}, please route to a ward"
        for _ in range(2500)
    ]
    assert list(find_leaks(texts[:2000], texts[2000:])) == []
