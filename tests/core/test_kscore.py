"""spec/kscore.md: the score, its terms, its gate."""

import ast
import inspect
from dataclasses import replace
from decimal import Decimal

import pytest

from kolm_build.core import kscore
from kolm_build.core.decimals import parse_decimal, render_decimal
from kolm_build.core.kscore import Evidence, KScore, Thresholds, gate, score
from kolm_build.errors import InvalidRecordError

EVIDENCE = Evidence(
    rows=200,
    correct=142,
    verified=198,
    base_correct=20,
    weight_bytes=150,
    flops_per_request=10**9,
    bytes_per_request=10**9,
    size_budget_bytes=100,
    latency_budget_us=100_000,
    cost_budget_microusd=1_000,
    device_flops_per_s=10**11,
    device_bytes_per_s=10**10,
    device_microusd_per_hour=36_000,
)


def test_k_is_the_weighted_sum_of_the_terms_shown():
    """KS-1, KS-2."""
    made = score(EVIDENCE)
    assert (made.accuracy, made.coverage) == (Decimal("0.7100"), Decimal("0.9900"))
    assert made.size == Decimal("0.7071")
    assert (made.latency, made.cost) == (Decimal("1.0000"), Decimal("1.0000"))
    by_hand = Decimal("0.4") * made.accuracy + Decimal("0.15") * (
        made.size + made.latency + made.cost + made.coverage
    )
    assert by_hand == Decimal("0.838565")
    assert made.k == Decimal("0.8386")
    assert sum(kscore.WEIGHTS.values()) == 1


def test_rounding_is_half_to_even():
    """KS-2."""
    for correct, shown in ((1, "0.0000"), (3, "0.0002"), (5, "0.0002"), (7, "0.0004")):
        assert str(score(replace(EVIDENCE, rows=20_000, correct=correct)).accuracy) == shown


@pytest.mark.parametrize(
    ("used", "term"),
    [
        (0, "1.0000"),
        (100, "1.0000"),
        (101, "0.9931"),
        (150, "0.7071"),
        (200, "0.5000"),
        (300, "0.2500"),
        (1000, "0.0020"),
        (1500, "0.0001"),
        (6_400, "0.0000"),
        (10**15, "0.0000"),
    ],
)
def test_a_use_over_its_budget_is_halved_for_each_budget(used, term):
    """KS-4, KS-5."""
    assert str(score(replace(EVIDENCE, weight_bytes=used)).size) == term


def test_latency_is_the_longer_of_compute_and_memory_rounded_up():
    """KS-6."""
    assert EVIDENCE.latency_us == 100_000
    assert replace(EVIDENCE, bytes_per_request=1).latency_us == 10_000
    assert replace(EVIDENCE, bytes_per_request=10**9 + 1).latency_us == 100_001
    assert replace(EVIDENCE, flops_per_request=0, bytes_per_request=0).latency_us == 0


def test_cost_is_that_of_a_thousand_requests_rounded_up():
    """KS-7."""
    assert EVIDENCE.cost_microusd == 1_000
    assert replace(EVIDENCE, device_microusd_per_hour=36_001).cost_microusd == 1_001


def test_the_score_needs_integers_and_nothing_else():
    """KS-3, KS-8: no clock, no float, no framework: the module imports none."""
    tree = ast.parse(inspect.getsource(kscore))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {
        *("__future__", "dataclasses", "decimal", "typing"),
        *("kolm_build.core.decimals", "kolm_build.core.fields", "kolm_build.errors"),
    }
    assert all(one is None or type(one) is int for one in EVIDENCE.to_value().values())


def test_a_score_is_read_back_and_computed_again():
    """KS-9."""
    made = score(EVIDENCE)
    assert KScore.from_value(made.to_value()) == made
    without = score(replace(EVIDENCE, base_correct=None))
    assert without.base_accuracy is None
    assert KScore.from_value(without.to_value()) == without


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"k": "0.9999"}, "k"),
        ({"k": "0.83860"}, "k"),
        ({"base_accuracy": "0.5000"}, "base_accuracy"),
        ({"base_accuracy": None}, "base_accuracy"),
        ({"latency_us": 1}, "latency_us"),
        ({"cost_microusd": 1}, "cost_microusd"),
        ({"terms": {}}, "terms"),
        ({"format": "kscore/2"}, "format"),
        ({"more": 1}, "more"),
    ],
)
def test_a_figure_that_does_not_follow_is_refused(change, where):
    """KS-9."""
    with pytest.raises(InvalidRecordError) as caught:
        KScore.from_value(score(EVIDENCE).to_value() | change)
    assert caught.value.where == where


def test_evidence_that_was_improved_changes_the_figures():
    """KS-9."""
    value = score(EVIDENCE).to_value()
    value["evidence"] = value["evidence"] | {"correct": 143}
    with pytest.raises(InvalidRecordError):
        KScore.from_value(value)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 0},
        {"correct": 201},
        {"correct": -1},
        {"verified": 201},
        {"base_correct": 201},
        {"weight_bytes": -1},
        {"flops_per_request": -1},
        {"size_budget_bytes": 0},
        {"latency_budget_us": 0},
        {"device_flops_per_s": 0},
        {"device_microusd_per_hour": -1},
    ],
)
def test_evidence_that_cannot_be_is_refused(change):
    with pytest.raises(InvalidRecordError) as caught:
        replace(EVIDENCE, **change)
    assert caught.value.where == next(iter(change))


def test_the_gate_names_each_term_and_by_how_much():
    """KS-10."""
    made = score(EVIDENCE)
    verdict = gate(made, Thresholds.parse(k="0.85", accuracy="0.75", coverage="0.99"))
    assert not verdict.passed
    assert [str(one) for one in verdict.shortfalls] == [
        "k 0.8386 is 0.0114 below 0.85",
        "accuracy 0.7100 is 0.04 below 0.75",
    ]
    assert verdict.to_value()["shortfalls"][1] == {
        "term": "accuracy",
        "value": "0.7100",
        "minimum": "0.75",
        "short_by": "0.04",
    }


def test_equal_passes_the_gate():
    """KS-10."""
    thresholds = Thresholds.parse(k="0.8386", accuracy="0.71", coverage="0.99")
    assert gate(score(EVIDENCE), thresholds).passed


@pytest.mark.parametrize("text", ["", "1.1", "-0.1", "nan", "inf", "0,5", "1/2", " 0.5"])
def test_a_threshold_is_a_number_from_0_to_1(text):
    with pytest.raises(InvalidRecordError) as caught:
        Thresholds.parse(k="0.5", accuracy=text, coverage="0")
    assert caught.value.where == "accuracy_min"


@pytest.mark.parametrize(
    ("text", "plain"),
    [("1e-3", "0.001"), ("0.0010", "0.001"), ("-0", "0"), ("00.50", "0.5"), ("1E2", "100")],
)
def test_a_decimal_number_has_one_plain_form(text, plain):
    """RECIPE-2, CBOR-3, DRV-4."""
    assert render_decimal(parse_decimal(text)) == plain
    assert render_decimal(parse_decimal(plain)) == plain
