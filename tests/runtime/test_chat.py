"""Messages become tokens by the model's own template, which never reads the clock."""

from __future__ import annotations

import json

import pytest

from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.chat import Chat, messages_of
from kolm_build.runtime.files import find_model
from tests.support.models import tiny_llama


@pytest.fixture
def folder(tmp_path):
    return tiny_llama(tmp_path / "model")


def chat_of(folder) -> Chat:
    return Chat.of(find_model(folder))


def test_a_prompt_is_the_template_with_the_answer_opened(folder):
    """SFT-2."""
    chat = chat_of(folder)
    ids = chat.prompt_ids(messages_of("low mood", system="Be brief."))
    assert chat.tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nlow mood<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_ends_with_the_end_token_and_reads_back(folder):
    chat = chat_of(folder)
    ids = chat.answer_ids("a panic attack — ü")
    assert ids[-1] == chat.end_id == 2
    assert chat.text(ids) == "a panic attack — ü"


def test_generation_stops_at_every_end_token_of_the_model(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert chat_of(folder).stop_ids == {0, 2}
    (folder / "generation_config.json").unlink()
    assert chat_of(folder).stop_ids == {2}


def test_a_template_takes_its_branch_for_no_clock(folder):
    """SFT-6."""
    (folder / "chat_template.jinja").write_text(
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}no clock{% endif %}"
    )
    chat = chat_of(folder)
    assert chat.text(chat.prompt_ids(messages_of("x"))) == "no clock"


def test_a_template_that_needs_the_clock_is_refused(folder):
    """SFT-6."""
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}")
    with pytest.raises(InvalidRecordError, match="refuses these messages"):
        chat_of(folder).prompt_ids(messages_of("x"))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% if %}", "{{ ''.__class__.__mro__ }}"]
)
def test_a_template_that_fails_or_reaches_out_is_refused(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InvalidRecordError, match="refuses these messages"):
        chat_of(folder).prompt_ids(messages_of("x"))


def test_a_template_may_stand_in_the_settings(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidRecordError, match="no chat template"):
        chat_of(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": template})
    )
    assert chat_of(folder).template == template


@pytest.mark.parametrize("token", [None, "<|nowhere|>", 7])
def test_a_model_without_an_end_token_is_refused(folder, token):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": token}))
    with pytest.raises(InvalidRecordError, match="no token ends an answer"):
        chat_of(folder)
