"""Chat templates are programs of strangers: bounded, without clock or chance, as transformers'."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from kolm_build.errors import InvalidRecordError
from kolm_build.runtime import template
from kolm_build.runtime.template import rendered

MESSAGES = [
    {"role": "system", "content": "Be <brief>."},
    {"role": "user", "content": "grüß'\"\n"},
    {"role": "assistant", "content": "ok"},
]
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    "text",
    [
        "{% for message in messages %}{{ message.content }}\n  {% if loop.last %}x{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}go{% endif %}",
        "{{ bos_token }}{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | "
        "length * 2 %}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}",
        "{% for m in messages %}{% generation %}{{ m['content'].strip() }}{% endgeneration %}"
        "{% endfor %}",
        "{{ dict(a=1) }}{% if tools %}t{% endif %}{% if tools is none %}n{% endif %}{{ '-' * 9 }}",
        "{%- macro one(m) -%}[{{ m.role }}]{%- endmacro -%}{{ one(messages[1]) }}{{ nothing }}",
    ],
)
def test_a_template_is_rendered_as_transformers_does_it(text):
    """GEN-20."""
    (wanted,), _ = render_jinja_template(
        [MESSAGES], chat_template=text, add_generation_prompt=True, **SPECIALS
    )
    assert rendered(text, MESSAGES, SPECIALS) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}",
        "{{ 'x'.ljust(99999999999) }}",
        "{{ 'x' | center(99999999999) }}",
        "{{ '%099999999999d' % 1 }}",
        "{{ ('x' * 60000) | replace('x', 'x' * 60000) | replace('x', 'x' * 60000) }}",
        "{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    ],
)
def test_a_template_without_end_is_refused(text, monkeypatch):
    """GEN-21."""
    monkeypatch.setattr(template, "MAX_LINES", 100_000)
    before = resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()
    with pytest.raises(InvalidRecordError, match="chat template"):
        rendered(text, MESSAGES, {})
    assert (resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()) == before


def test_single_operations_are_ended_by_their_processor_time(monkeypatch):
    """GEN-21."""
    clock = iter(range(10_000))
    monkeypatch.setattr(template, "thread_time", lambda: next(clock))
    with pytest.raises(InvalidRecordError, match="without end"):
        rendered("{% for a in range(99) %}{{ a }}{% endfor %}", MESSAGES, {})


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x' * 65537 }}",
        "{{ [0] * 65537 }}",
        "{{ 65537 * 'x' }}",
        "{{ 2 ** 9 }}",
        "{{ 4294967296 * 4294967297 }}",
    ],
)
def test_much_is_not_made_of_little(text):
    """GEN-22."""
    with pytest.raises(InvalidRecordError, match="refuses these messages"):
        rendered(text, MESSAGES, {})


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ dict.__class__ }}{{ dict.mro() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ joiner.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ self.__init__ }}{{ self._TemplateReference__context }}",
        "{{ range.__self__ }}{{ raise_exception.__globals__ }}",
    ],
)
def test_a_template_gets_out_of_no_sandbox(text):
    """GEN-23."""
    with suppress(InvalidRecordError):
        assert rendered(text, MESSAGES, {}) == ""  # what may not be seen prints nothing


@pytest.mark.parametrize(
    "text",
    [
        "{{ strftime_now('%Y') }}",
        "{{ lipsum() }}",
        "{{ messages | random }}",
        "{{ raise_exception('no') }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ nothing.at.all }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_what_a_template_lacks_or_gets_wrong_is_refused(text):
    """GEN-20, GEN-23."""
    with pytest.raises(InvalidRecordError, match="refuses these messages"):
        rendered(text, MESSAGES, {})


def test_the_messages_stay_as_they_were():
    messages = [dict(message) for message in MESSAGES]
    rendered("{% set m = messages[0] %}{{ m.content }}", messages, {})
    assert messages == MESSAGES
