"""A model's files were made by a stranger: whatever they hold, there is an answer or an error."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors.torch import save_file

from kolm_build.errors import BuildError, InvalidDataError, InvalidRecordError
from kolm_build.runtime import answering
from kolm_build.runtime.chat import Chat, messages_of
from kolm_build.runtime.compiled_loading import compiled_speaker
from kolm_build.runtime.decoder_config import read
from kolm_build.runtime.files import MAX_TABLE_BYTES, find_model
from kolm_build.runtime.forms import begin
from kolm_build.runtime.loading import load
from kolm_build.runtime.mapped import map_file
from kolm_build.runtime.settings import GenerationSettings, JsonSchema, Labels, Regex
from kolm_build.runtime.template import MAX_CHARACTERS, rendered
from tests.runtime.networks import network_of, settings_of
from tests.support.models import tiny_llama
from tests.support.quantised import quantised

SHORT = GenerationSettings(max_new_tokens=2)


@pytest.fixture
def folder(tmp_path):
    return tiny_llama(tmp_path / "model")


def changed(folder, name, **changes):
    """`folder` with other settings in its file `name`."""
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def compiled(folder):
    return compiled_speaker(find_model(folder), threads=1)


# --------------------------------------------------------------------------------------- template


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' | center(99999999999) }}",
        "{{ '%099999999999d' % 1 }}",
        "{{ 1 | round(99999999, 'ceil') }}",
        "{{ 5 | round(-99999999) }}",
        "{% autoescape 'x' | center(99999999999) %}{% endautoescape %}",
    ],
)
def test_nothing_of_a_template_is_computed_without_bounds(template):
    """GEN-21, GEN-22."""
    with pytest.raises(InvalidRecordError, match="chat template"):
        rendered(template, messages_of("x"), {})


@pytest.mark.parametrize("operator", ["//", "%", "is divisibleby"])
def test_numbers_beyond_64_bits_are_not_divided(operator):
    """GEN-22."""
    made = "(0).from_bytes(('a' * 60000).encode(), 'big')"
    with pytest.raises(InvalidRecordError, match="divides"):
        rendered(f"{{{{ {made} {operator} (7) }}}}", messages_of("x"), {})
    assert rendered("{{ 7 // 2 }}{{ 7 % 4 }}{{ '%02d' % 5 }}", messages_of("x"), {}) == "3305"
    assert rendered("{{ 2.345 | round(1) }}{{ 6 is divisibleby 3 }}", [], {}) == "2.3True"


@pytest.mark.parametrize(
    "template",
    [
        "{{ none | dictsort }}",
        "{{ cycler() }}",
        "{{ dict(a=1, a=2) }}",
        "{% break %}",
        "{% macro m(a, a) %}{% endmacro %}",
        "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
        "{% if 1 %}" * 120 + "{% endif %}" * 120,
        "{{ '\\ud800' }}",
        "x" * (MAX_CHARACTERS + 1),
    ],
)
def test_whatever_a_template_raises_is_an_error_of_the_model(template):
    """GEN-23."""
    with pytest.raises(InvalidRecordError, match="refuses these messages"):
        rendered(template, messages_of("x"), {})


def test_a_template_that_is_no_text_is_refused(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InvalidRecordError, match="UTF-8"):
        Chat.of(find_model(folder))


def test_a_template_that_makes_no_token_is_refused(folder):
    """GEN-77."""
    (folder / "chat_template.jinja").write_text("{{ '' }}")
    with pytest.raises(InvalidDataError, match="no token"):
        answering.opened(folder).generate("x", settings=SHORT)


def test_a_template_that_makes_much_text_of_little_is_refused(folder):
    """GEN-79."""
    chat = Chat.of(find_model(folder))
    many = "{% set x = 'a ' * 32000 %}{% for i in range(32) %}{{ x }}{% endfor %}"
    with pytest.raises(InvalidRecordError, match="too much of these messages"):
        replace(chat, template=many).prompt_ids(messages_of("x"))
    twice = "{{ messages[0].content }}{{ messages[0].content }}"
    assert replace(chat, template=twice).prompt_ids(messages_of("low" * 1000))


# -------------------------------------------------------------------------------------- tokenizer

BAD = {
    "a missing token": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "u"}},
    "a pattern that backtracks": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(x+x+)+y"},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    "a second text": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "B", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_whatever_a_tokenizer_fails_with_is_an_error_of_the_model(folder, changes):
    """GEN-76."""
    chat = Chat.of(find_model(changed(folder, "tokenizer.json", **changes)))
    with pytest.raises(InvalidRecordError, match="tokenizer fails"):
        chat.prompt_ids(messages_of("x" * 60))


def test_a_decoder_that_fails_is_an_error_of_the_model(folder):
    """GEN-76."""
    decoder = {"type": "Strip", "content": "a", "start": 5, "stop": 99}
    chat = Chat.of(find_model(changed(folder, "tokenizer.json", decoder=decoder)))
    with pytest.raises(InvalidRecordError, match="tokenizer fails"):
        chat.text(chat.answer_ids("a"))


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
def test_a_tokenizer_that_makes_much_of_little_is_refused(folder, part):
    """GEN-76."""
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    if part == "pre_tokenizer":
        one = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        one["use_regex"] = False
    inside = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    steps = {"type": "Sequence", inside[part]: [one] * 40}
    with pytest.raises(InvalidRecordError, match="too much of a text"):
        Chat.of(find_model(changed(folder, "tokenizer.json", **{part: steps})))


def test_a_tokenizer_that_draws_by_chance_is_refused(folder):
    """GEN-76."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    with pytest.raises(InvalidRecordError, match="by chance"):
        Chat.of(find_model(changed(folder, "tokenizer.json", model=model | {"dropout": 0.1})))


def test_a_label_beyond_the_vocabulary_of_the_model_is_refused(folder):
    """GEN-76."""
    chat = Chat.of(find_model(folder))
    speaker = compiled(folder)
    most = max(chat.answer_ids("low"))
    assert speaker.words > most
    with pytest.raises(InvalidRecordError, match="does not have"):
        begin(Labels(labels=("low",)), chat, most)


@pytest.mark.parametrize("asked", ["compiled", "decoder", "network"])
def test_a_token_beyond_the_vocabulary_of_the_model_is_refused(folder, monkeypatch, asked):
    """GEN-73."""
    for name in {"decoder": ["_compiled"], "network": ["_compiled", "_by_decoder"]}.get(asked, ()):
        monkeypatch.setattr(answering, name, lambda *_: None)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocabulary["vocab"] |= {"x": 1 << 20}
    changed(folder, "tokenizer.json", model=vocabulary)
    with pytest.raises(InvalidRecordError, match="does not have"):
        answering.opened(folder).generate("x", settings=SHORT)


@pytest.mark.parametrize("end", [-1, 1 << 40, 10**30])
def test_end_tokens_that_no_model_says_change_no_form(folder, end):
    """GEN-76."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, end]}))
    settings = GenerationSettings(max_new_tokens=9, form=JsonSchema(text='{"type": "boolean"}'))
    assert answering.opened(folder).generate("x", settings=settings).text in {"true", "false"}


@pytest.mark.parametrize("pattern", ["\\", "a\\", "(", "[", "(?=a)", "a{2,1}"])
def test_a_malformed_regular_expression_is_refused(folder, pattern):
    """GEN-17."""
    settings = GenerationSettings(max_new_tokens=2, form=Regex(pattern=pattern))
    with pytest.raises(InvalidRecordError, match="no answer can have this form"):
        answering.opened(folder).generate("x", settings=settings)


DEEP = '{"properties": {"a": ' * 190 + "{}" + "}}" * 190


@pytest.mark.parametrize("text", ['{"minimum": NaN}', '{"minimum": %s}' % ("9" * 400), DEEP])
def test_a_schema_that_the_library_does_not_read_is_refused(folder, text):
    """GEN-17."""
    settings = GenerationSettings(form=JsonSchema(text=text))
    with pytest.raises(InvalidRecordError, match="no answer can have this form"):
        answering.opened(folder).generate("x", settings=settings)


# ----------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10**400}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e300}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 1e-300}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": float("nan")}},
        {"num_hidden_layers": 10**12, "model_type": "qwen2", "layer_types": ["full_attention"]},
    ],
)
def test_numbers_that_binary32_does_not_have_are_refused(folder, changes):
    """GEN-51."""
    settings = json.loads((folder / "config.json").read_text())
    read(settings)
    with pytest.raises(InvalidRecordError):
        read({one: settings[one] for one in settings if not one.endswith("_bias")} | changes)


@pytest.mark.parametrize("layers", [3, 10**9, 10**18, 10**30])
def test_layers_that_the_file_does_not_have_are_not_looked_for(folder, layers):
    """GEN-78."""
    assert compiled(changed(folder, "config.json", num_hidden_layers=layers)) is None


def test_a_table_of_settings_has_a_bound(folder):
    """GEN-78."""
    with (folder / "config.json").open("w") as file:
        file.truncate(MAX_TABLE_BYTES + 1)
    with pytest.raises(InvalidRecordError, match="too large"):
        find_model(folder).table("config.json")


# ---------------------------------------------------------------------------------------- weights


def test_a_file_that_has_become_shorter_is_refused(folder):
    """GEN-78."""
    file = folder / "model.safetensors"
    size = file.stat().st_size
    map_file(file, size=size)
    with file.open("r+b") as opened:
        opened.truncate(size - 4096)
    with pytest.raises(InvalidRecordError, match="shorter"):
        map_file(file, size=size)


@pytest.mark.parametrize("scheme", ["w4a16-asym", "w8a8-static"])
def test_tensors_at_odd_places_are_read_as_at_even_ones(folder, tmp_path, scheme):
    """GEN-71."""
    source = quantised(folder, tmp_path / "quantised", scheme)
    wanted = compiled(source).read(range(70)).logits
    file = source / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for more in (1, 2, 3):
        header = data[8 : 8 + length] + b" " * more
        file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
        found = compiled(source)
        assert found.read(range(70)).logits.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("tokens", [[], [-1], [1 << 31], [1 << 70]])
def test_no_token_and_one_that_is_none_are_not_read(folder, tokens):
    """GEN-73."""
    with pytest.raises(BuildError, match="no token"):
        compiled(folder).read(tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**9},
        {"num_hidden_layers": "two"},
        {"hidden_size": -1},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"rope_parameters": {"rope_type": "nothing"}},
        {"hidden_act": "nothing"},
    ],
)
def test_what_the_architecture_itself_is_asked_is_refused_or_told(folder, changes):
    """GEN-78."""
    changed(folder, "config.json", **changes)
    with pytest.raises(InvalidRecordError):
        load(folder)


READS = """
import json, sys
from pathlib import Path
from kolm_build.runtime.compiled_loading import compiled_decoder
from kolm_build.runtime.mapped import map_file, mapped_tensors

folder = Path(sys.argv[1])
tensors = mapped_tensors(map_file(folder / "model.safetensors"))
decoder = compiled_decoder(json.loads((folder / "config.json").read_text()), tensors)
ids = [number % 300 for number in range(130)]
whole = decoder.read_on(None, ids).logits
before = decoder.read_on(None, ids[:-1])
assert decoder.read_on(before.cache, ids[-1:]).logits.tobytes() == whole.tobytes()
# The most of this program: what `getrusage` says counts the process that began it, too.
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")))
"""


def test_a_wide_network_is_read_in_parts_that_fit_memory(tmp_path):
    """GEN-71, GEN-78."""
    network = network_of(
        num_hidden_layers=1,
        hidden_size=2,
        intermediate_size=1 << 20,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    save_file(dict(network.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings_of(network)))
    done = subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 130 * (2 << 20) * 4  # the rows of all tokens at once
