"""Verifiers accept what their text says, and bad ones are refused."""

from __future__ import annotations

import pytest

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._verifier import Verifier

PERSON = (
    'json-schema:{"type":"object","required":["name"],"additionalProperties":false,'
    '"properties":{"name":{"type":"string"},"age":{"type":"integer"},'
    '"tags":{"type":"array","items":{"enum":["a","b"]}}}}'
)


@pytest.mark.parametrize(
    ("verifier", "output", "accepted"),
    [
        ("none", "", True),
        ("labels", "skin", True),
        ("labels", "Skin", False),
        ("labels", "skin.", False),
        ("regex:[A-Z][0-9]{2}", "K21", True),
        ("regex:[A-Z][0-9]{2}", "K210", False),
        ("regex:a|b", "ab", False),
        (PERSON, '{"name":"Ada"}', True),
        (PERSON, '{"name":"Ada","age":36,"tags":["a"]}', True),
        (PERSON, '{"age":36}', False),
        (PERSON, '{"name":"Ada","age":true}', False),
        (PERSON, '{"name":"Ada","age":36.5}', False),
        (PERSON, '{"name":"Ada","tags":["c"]}', False),
        (PERSON, '{"name":"Ada","extra":1}', False),
        (PERSON, '{"name":"Ada","name":"Bo"}', False),
        (PERSON, '["name"]', False),
        (PERSON, "Ada", False),
        ('json-schema:{"type":"number"}', "NaN", False),
        ('json-schema:{"type":"number"}', "1.5", True),
        ('json-schema:{"enum":[1]}', "true", False),
        ("json-schema:{}", "[" * 2000, False),
    ],
)
def test_a_verifier_accepts_what_it_says(verifier, output, accepted):
    """EVAL-6, EVAL-7."""
    assert Verifier.parse(verifier, ["bone", "skin"]).accepts(output) is accepted


@pytest.mark.parametrize(
    "verifier",
    [
        "",
        "always",
        "labels:skin",
        "none:x",
        "regex:(",
        "json-schema:",
        "json-schema:[]",
        'json-schema:{"pattern":"a"}',
        'json-schema:{"type":"date"}',
        'json-schema:{"properties":{"a":{"minimum":1}}}',
        'json-schema:{"type":"object","type":"array"}',
    ],
)
def test_a_bad_verifier_is_refused(verifier):
    """EVAL-6, EVAL-7: an unknown keyword is an error, never ignored."""
    with pytest.raises(InvalidRecordError) as caught:
        Verifier.parse(verifier, ["bone"])
    assert (caught.value.where or "").startswith("verifier")


def test_the_verifier_labels_needs_labels():
    with pytest.raises(InvalidRecordError, match="needs labels"):
        Verifier.parse("labels", [])
