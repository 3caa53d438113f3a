"""Answers are drawn, stopped, formed and streamed, each as the specification says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from kolm_build.core.numerics import Numerics
from kolm_build.errors import BuildError, InvalidDataError, InvalidRecordError, MachineError
from kolm_build.numerics import native
from kolm_build.runtime import draws, forms
from kolm_build.runtime.asking import Prompt
from kolm_build.runtime.distribution import Distribution
from kolm_build.runtime.generate import continue_greedily, read_prompts
from kolm_build.runtime.loading import load
from kolm_build.runtime.modules import speaker
from kolm_build.runtime.settings import (
    GenerationSettings,
    JsonSchema,
    Labels,
    Regex,
)
from kolm_build.runtime.stopping import Pieces, StopStrings
from tests.support.models import tiny_llama

PROMPTS = [Prompt(text=text) for text in ("a dry cough", "low mood", "hives", "a stiff knee")]
DRAWN = Distribution(temperature=1.3, top_k=200, top_p=0.98, min_p=0.001)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    native.apply(Numerics(cls="native-1", seed=1))
    return speaker(load(tiny_llama(tmp_path_factory.mktemp("load") / "model")), is_portable=False)


def ask(model, **settings):
    return model.generate(
        "low mood", settings=GenerationSettings(**{"max_new_tokens": 24} | settings)
    )


# --------------------------------------------------------------------------------------- drawing


def slowly(model, settings):
    """An answer, token by token, without a cache, by the formulas."""
    ids = model.chat.prompt_ids([{"role": "user", "content": "low mood"}])
    said: list[int] = []
    for place in range(settings.max_new_tokens):
        with torch.no_grad():
            logits = model.network(input_ids=torch.tensor([ids + said])).logits[:, -1].float()
        number = draws.draw_number(settings.seed, 0, place)
        said += draws.drawn(logits, settings.distribution, [number])
        if said[-1] in model.chat.stop_ids:
            break
    return said


def test_without_a_temperature_an_answer_is_greedy(model):
    """GEN-1: as `evaluate` has it."""
    ids = model.chat.prompt_ids([{"role": "user", "content": "low mood"}])
    read = read_prompts(model.network, [ids])
    (said,) = continue_greedily(read, max_new_tokens=24, stop_ids=model.chat.stop_ids)
    answer = ask(model, seed=9)
    assert (answer.text, answer.output_tokens) == (model.chat.text(said), len(said))


@pytest.mark.parametrize("seed", [0, 7])
def test_an_answer_is_drawn_token_by_token(model, seed):
    """GEN-5."""
    settings = GenerationSettings(max_new_tokens=12, distribution=DRAWN, seed=seed)
    answer = model.generate("low mood", settings=settings)
    said = slowly(model, settings)
    assert (answer.text, answer.output_tokens) == (model.chat.text(said), len(said))


def test_another_seed_gives_another_answer_and_the_same_one_the_same(model):
    """GEN-5."""
    answers = [ask(model, distribution=DRAWN, seed=seed).text for seed in (1, 2, 3, 1)]
    assert answers[0] == answers[3]
    assert len(set(answers)) == 3


def test_an_answer_among_others_is_the_one_alone(model):
    """GEN-2, GEN-5: drawn ones too."""
    settings = GenerationSettings(max_new_tokens=9, distribution=DRAWN, seed=4)
    together = model.answers(PROMPTS, settings, together=3)
    assert together == [model.generate(one.text, settings=settings) for one in PROMPTS]


WEIGHTS = np.array([[10, 40, 0, 30, 40], [5, 5, 5, 5, 1]])


def test_the_likeliest_are_kept_the_lower_id_first_among_equals():
    """GEN-6."""
    assert draws.likeliest(WEIGHTS, 1).tolist() == [[0, 40, 0, 0, 0], [5, 0, 0, 0, 0]]
    assert draws.likeliest(WEIGHTS, 3).tolist() == [[0, 40, 0, 30, 40], [5, 5, 5, 0, 0]]
    assert draws.likeliest(WEIGHTS, 9).tolist() == WEIGHTS.tolist()


def test_what_is_far_below_the_likeliest_is_left_out():
    """GEN-6."""
    assert draws.near_the_likeliest(WEIGHTS, 0.75).tolist() == [[0, 40, 0, 30, 40], [5, 5, 5, 5, 0]]
    assert draws.near_the_likeliest(WEIGHTS, 0.76).tolist()[0] == [0, 40, 0, 0, 40]


def test_filters_apply_one_after_the_other(monkeypatch):
    """GEN-6: `top_p` of what `top_k` left, `min_p` of what both left."""
    seen = []
    for name in ("likeliest", "nucleus", "near_the_likeliest"):
        kept = getattr(draws, name)
        monkeypatch.setattr(
            draws, name, lambda w, p, name=name, kept=kept: seen.append((name, p)) or kept(w, p)
        )
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    one = Distribution(top_k=3, top_p=0.45, min_p=0.01)
    # Of 0.4, 0.3, 0.2 the first alone has 0.444 of all: the second is drawn from too.
    assert {draws.drawn(logits, one, [n << 60])[0] for n in range(16)} == {0, 1}
    assert seen[:3] == [("likeliest", 3), ("nucleus", 0.45), ("near_the_likeliest", 0.01)]


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.0},
        {"temperature": 101.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.5},
    ],
)
def test_a_filter_out_of_range_is_refused_by_name(setting):
    """GEN-7."""
    with pytest.raises(InvalidRecordError, match="out of range") as caught:
        Distribution(**setting)
    assert caught.value.where == next(iter(setting))


# ---------------------------------------------------------------------------------------- ending


def test_an_answer_says_why_it_ended(model):
    """GEN-3."""
    whole = ask(model)
    assert whole.end == "length"
    assert whole.output_tokens == 24
    ended = ask(replace(model, chat=replace(model.chat, stop_ids=frozenset(range(260)))))
    assert (ended.end, ended.output_tokens) == ("end", 1)
    stopped = ask(model, stop=(whole.text[3:5],))
    assert (stopped.end, stopped.text) == ("stop", whole.text[: whole.text.index(whole.text[3:5])])
    assert stopped.output_tokens < 24


def test_the_earliest_of_several_stop_strings_ends_an_answer(model):
    """GEN-11."""
    whole = ask(model).text
    stops = (whole[9:11], whole[4:6], "nowhere")
    first = min(whole.index(one) for one in stops[:2])
    assert ask(model, stop=stops).text == whole[:first]


def test_an_empty_stop_string_is_refused(model):
    """GEN-13."""
    with pytest.raises(InvalidRecordError, match="empty stop string"):
        ask(model, stop=("a", ""))


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
def test_text_up_to_a_stop_string_is_given_whatever_pieces_it_comes_in(text, stops, cuts):
    """GEN-11, GEN-12: one character more is one piece more; nothing is taken back."""
    filter_, given_out = StopStrings(stops), ""
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, end in pairwise(edges):
        given_out += filter_.add(text[start:end])
        seen = text[:end]
        places = [seen.index(one) for one in stops if one in seen]
        if places:
            assert filter_.is_met
            assert given_out == seen[: min(places)]
            return
        assert seen.startswith(given_out)
        assert len(seen) - len(given_out) < max(map(len, stops), default=1)
    assert given_out + filter_.rest() == text


# -------------------------------------------------------------------------------------- streaming


def byte_tokenizer():
    from tests.support.models import TINY, example

    return Tokenizer.from_str(json.dumps(example(TINY / "model.py").tokenizer()))


@given(st.text(max_size=12), st.binary(max_size=6))
def test_pieces_are_whole_characters_and_add_up(text, more):
    """GEN-12: of any text, with bytes behind it that are none."""
    tokenizer = byte_tokenizer()
    symbols = tokenizer.get_vocab()
    table = {at: symbols[symbol] for at, symbol in enumerate(_symbols())}
    ids = [table[byte] for byte in text.encode(errors="replace") + more]
    pieces = Pieces(tokenizer)
    found = [pieces.add(token) for token in ids]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    given_out = "".join(found)
    assert given_out + pieces.rest(whole) == whole
    assert whole.startswith(given_out)
    assert all(piece.encode() for piece in found if piece)


def _symbols():
    from tests.support.models import TINY, example

    return example(TINY / "model.py").byte_symbols()


def test_a_character_of_several_tokens_comes_when_it_is_complete():
    """GEN-12."""
    tokenizer, pieces = byte_tokenizer(), None
    ids = tokenizer.encode("aü€😀", add_special_tokens=False).ids
    assert len(ids) == 1 + 2 + 3 + 4
    pieces = Pieces(tokenizer)
    assert [pieces.add(token) for token in ids] == ["a", "", "ü", "", "", "€", "", "", "", "😀"]


def test_a_tokenizer_that_spells_differently_piece_by_piece_is_refused():
    pieces = Pieces(byte_tokenizer())
    pieces.add(100)
    with pytest.raises(BuildError, match="token by token"):
        pieces.rest("something else")


def test_words_with_spaces_before_them_add_up():
    """GEN-12: a decoder that leaves the first space out."""
    words = {"▁a": 0, "▁b": 1, "c": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="c"))
    tokenizer.decoder = decoders.Metaspace()
    pieces = Pieces(tokenizer)
    found = "".join(pieces.add(token) for token in (0, 1, 2, 0))
    assert found + pieces.rest(tokenizer.decode([0, 1, 2, 0])) == "a bc a"


@pytest.mark.parametrize(
    "settings", [{}, {"distribution": DRAWN, "seed": 3}, {"stop": ("zz", "e")}]
)
def test_a_streamed_answer_is_the_answer(model, settings):
    """GEN-10, GEN-12."""
    asked = GenerationSettings(max_new_tokens=24, **settings)
    stream = model.stream("low mood", settings=asked)
    pieces = list(stream)
    answer = model.generate("low mood", settings=asked)
    assert ("".join(pieces), stream.end) == (answer.text, answer.end)
    assert all(pieces)


def test_what_cannot_be_streamed_is_refused_before_a_token_is_read(model):
    """GEN-4, GEN-17."""
    with pytest.raises(InvalidDataError, match="window"):
        model.stream("long " * 300)
    with pytest.raises(InvalidRecordError):
        model.stream("low mood", settings=GenerationSettings(form=Labels(())))


def test_of_several_prompts_the_one_that_does_not_fit_is_named(model):
    """GEN-4."""
    with pytest.raises(InvalidDataError, match="window") as caught:
        model.answers([*PROMPTS, Prompt(text="long " * 300)])
    assert caught.value.where == "prompt 5"


# ------------------------------------------------------------------------------------------ form


@pytest.mark.parametrize("distribution", [None, DRAWN])
def test_an_answer_is_one_of_the_labels(model, distribution):
    """GEN-14, GEN-15."""
    labels = ("lung", "lungs", "mind", "skin — ü")
    for seed in range(6):
        answer = ask(model, distribution=distribution, seed=seed, form=Labels(labels))
        assert answer.text in labels
        assert answer.end == "end"


def test_of_labels_the_likeliest_way_is_gone(model):
    """GEN-14: the likeliest allowed token each time."""
    ids = model.chat.prompt_ids([{"role": "user", "content": "low mood"}])
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([ids])).logits[0, -1]
    tokens = {label: model.chat.answer_ids(label)[0] for label in "abcxyz"}
    wanted = max("abcxyz", key=lambda label: logits[tokens[label]])
    assert ask(model, form=Labels(tuple("abcxyz"))).text == wanted


@pytest.mark.parametrize("labels", [(), ("a", "")])
def test_labels_that_are_none_are_refused(model, labels):
    """GEN-15."""
    with pytest.raises(InvalidRecordError, match="label set needs labels"):
        ask(model, form=Labels(labels))


llguidance = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("llguidance") is None,
    reason="llguidance is not installed (the extra `run`)",
)


@llguidance
@pytest.mark.parametrize("distribution", [None, DRAWN])
@pytest.mark.parametrize("pattern", ["[0-9]{3}-[a-f]{2}", "(yes|no|über) ?!", "ab?"])
def test_an_answer_matches_the_expression(model, pattern, distribution):
    """GEN-14, GEN-16."""
    for seed in range(4):
        answer = ask(model, distribution=distribution, seed=seed, form=Regex(pattern))
        assert re.fullmatch(pattern, answer.text)
        assert answer.end == "end"


SCHEMA = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[A-Z][0-9]{2}$"},
        "sure": {"type": "boolean"},
        "chapter": {"enum": ["I", "II"]},
    },
    "required": ["code", "sure", "chapter"],
    "additionalProperties": False,
}


@llguidance
@pytest.mark.parametrize("distribution", [None, DRAWN])
def test_an_answer_is_json_by_the_schema_and_spelled_in_one_way(model, distribution):
    """GEN-14, GEN-16."""
    form = JsonSchema(json.dumps(SCHEMA))
    for seed in range(4):
        answer = ask(model, max_new_tokens=99, distribution=distribution, seed=seed, form=form)
        value = json.loads(answer.text)
        assert list(value) == ["code", "sure", "chapter"]
        assert re.fullmatch("[A-Z][0-9]{2}", value["code"])
        assert value["chapter"] in ("I", "II")
        assert answer.text == json.dumps(value)


@llguidance
def test_a_formed_answer_among_others_is_the_one_alone(model):
    """GEN-2."""
    settings = GenerationSettings(
        max_new_tokens=40, distribution=DRAWN, seed=2, form=JsonSchema(json.dumps(SCHEMA))
    )
    together = model.answers(PROMPTS, settings, together=4)
    assert together == [model.generate(one.text, settings=settings) for one in PROMPTS]


@llguidance
@pytest.mark.parametrize(
    "form",
    [
        Regex("(a"),
        Regex("(?=a)b"),
        Regex("[^\\s\\S]"),
        JsonSchema('{"enum": []}'),
        JsonSchema('{"type": "integer", "minimum": 5, "maximum": 2}'),
        JsonSchema('{"type": "object", "properties": {"a": false}, "required": ["a"]}'),
        JsonSchema('{"type": "string", "minLength": 5, "maxLength": 2}'),
        JsonSchema('{"allOf": [{"type": "string"}, {"type": "integer"}]}'),
        JsonSchema('{"$ref": "https://example.org/schema"}'),
        JsonSchema('{"$ref": "#"}'),
        JsonSchema('{"type": "string", "pattern": "("}'),
    ],
)
def test_a_form_that_nothing_has_is_refused(model, form):
    """GEN-17."""
    with pytest.raises(InvalidRecordError, match="no answer can have this form") as caught:
        ask(model, form=form)
    assert caught.value.actual


@llguidance
def test_a_form_that_no_token_of_the_vocabulary_has_is_refused():
    """GEN-17: a tokenizer without the characters asked for."""
    from kolm_build.runtime.chat import Chat

    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    tokenizer.decoder = decoders.ByteLevel()
    chat = Chat(tokenizer=tokenizer, template="", specials={}, end_id=2, stop_ids=frozenset({2}))
    assert forms.begin(Regex("a+"), chat, 3)().allowed().tolist() == [True, False, False]
    with pytest.raises(InvalidRecordError, match="no answer can have this form") as caught:
        forms.begin(Regex("[0-9]+"), chat, 3)
    assert caught.value.actual == "no token of the vocabulary can follow"
    late = forms.begin(Regex("a[0-9]"), chat, 3)()
    late.take(0)
    with pytest.raises(InvalidRecordError, match="no answer can have this form"):
        late.allowed()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "JSON Schema"),
        ("[1]", "JSON Schema"),
        ('{"type": "string", "type": "integer"}', "JSON Schema"),
        ('{"x-guidance": {}}', "JSON Schema"),
        ('{"needed": []}', "JSON Schema"),
        ('{"properties": {"a": {"not": {}}}}', "JSON Schema.properties.a"),
        ('{"anyOf": [{}, {"if": {}}]}', "JSON Schema.anyOf[1]"),
        ('{"items": {"contains": {}}}', "JSON Schema.items"),
    ],
)
def test_a_schema_that_would_not_be_followed_is_refused(text, where):
    """GEN-16."""
    from kolm_build.runtime.json_schema import check

    with pytest.raises(InvalidRecordError) as caught:
        check(text)
    assert caught.value.where == where


@llguidance
def test_a_tokenizer_that_grammars_cannot_follow_is_refused(model):
    chat = replace(model.chat, tokenizer=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(InvalidRecordError, match="with this tokenizer"):
        forms.begin(Regex("a"), chat, 1)


def test_without_the_library_a_grammar_is_refused_with_what_to_install(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(MachineError, match="need a library") as caught:
        ask(model, form=Regex("a"))
    assert "pip install" in caught.value.advice
