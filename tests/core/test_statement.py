"""In-toto statements."""

from dataclasses import replace

import pytest

from kolm_build.core.statement import BUILT, STATEMENT_TYPE, Statement, Subject
from kolm_build.core.strict_json import dumps, loads
from kolm_build.errors import InvalidRecordError

SUBJECT = Subject(name="manifest.json", sha256="a" * 64, blake3="b" * 64)
STATEMENT = Statement(subjects=(SUBJECT,), predicate_type=BUILT, predicate={"what": {"k": "0.8"}})


def test_a_statement_is_read_back_from_its_one_text():
    data = STATEMENT.encode()
    assert Statement.decode(data) == STATEMENT
    assert loads(data)["_type"] == STATEMENT_TYPE == "https://in-toto.io/Statement/v1"
    assert loads(data)["subject"] == [
        {"digest": {"blake3": "b" * 64, "sha256": "a" * 64}, "name": "manifest.json"}
    ]


def test_a_statement_of_another_spelling_is_refused():
    with pytest.raises(InvalidRecordError, match="not canonical"):
        Statement.decode(STATEMENT.encode() + b"\n")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "_type"),
        ({"subject": []}, "subject"),
        ({"subject": [SUBJECT.to_value()] * 2}, "subject"),
        ({"subject": [{"name": "a", "digest": {"sha256": "a" * 64}}]}, "subject[0].blake3"),
        ({"subject": [{"name": "a"}]}, "subject[0].sha256"),
        ({"predicateType": 1}, "predicateType"),
        ({"predicate": []}, "predicate"),
        ({"extra": 1}, "extra"),
    ],
)
def test_what_is_not_a_statement_is_refused_at_its_path(change, where):
    with pytest.raises(InvalidRecordError) as caught:
        Statement.decode(dumps(STATEMENT.to_value() | change))
    assert caught.value.where == where


@pytest.mark.parametrize("change", [{"sha256": "A" * 64}, {"blake3": "b" * 63}, {"name": ""}])
def test_a_subject_has_a_name_and_both_digests(change):
    with pytest.raises(InvalidRecordError):
        replace(SUBJECT, **change)
