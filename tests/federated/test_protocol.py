"""Rounds between parties: what adds up, who falls out, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from kolm_build.errors import InvalidRecordError, RoundError, SubmissionError
from tests.federated.parties import (
    ROWS,
    SHAPES,
    Federation,
    LocalLink,
    pattern,
    plan,
    rows_of,
    start_arrays,
)

BITS = 24


def patterns(name):
    rows = rows_of(name, ROWS[name])
    return {tensor: pattern(rows, tensor).astype(np.float64) for tensor in SHAPES}


def mean_of(names):
    """The weighted mean of the sites' updates, as the spec has it."""
    start, whole = start_arrays(), sum(ROWS[name] for name in names)
    made = {}
    for tensor in SHAPES:
        total = np.zeros(SHAPES[tensor], dtype=np.int64)
        for name in names:
            end = (start[tensor] + patterns(name)[tensor]).astype(np.float32).astype(np.float64)
            total += ROWS[name] * np.trunc((end - start[tensor]) * 2**BITS).astype(np.int64)
        made[tensor] = (start[tensor] + total / (whole * 2.0**BITS)).astype(np.float32)
    return made


def same(found, wanted):
    return all(np.array_equal(found[name].astype(np.float32), wanted[name]) for name in wanted)


@pytest.mark.parametrize("masks", [True, False])
def test_a_round_gives_the_weighted_mean_with_masks_as_without(tmp_path, masks):
    """FED-24, FED-34, FED-80."""
    federation = Federation(tmp_path, plan("fed-avg", masks=masks))
    told = federation.round()
    assert same(federation.adapter(told), mean_of(sorted(ROWS)))
    assert told.summary["survivors"] == sorted(ROWS)
    assert (told.correct, told.judged) == (3, 12)


WHEN = ("open", "round", "shares", "survivors", "unmask", "result")


@pytest.mark.parametrize(
    ("gone", "when"), [*(("south", when) for when in WHEN), ("north", "shares"), ("west", "shares")]
)
def test_a_site_that_falls_out_leaves_the_others_their_sum(tmp_path, gone, when):
    """FED-34: whenever it goes, what the others sent is added up without masks."""
    federation = Federation(tmp_path, plan())
    federation.links[gone].dead_from = when
    told = federation.round()
    sent = when in ("survivors", "unmask", "result")
    names = sorted(ROWS) if sent else [name for name in sorted(ROWS) if name != gone]
    assert told.summary["survivors"] == names
    assert same(federation.adapter(told), mean_of(names))
    assert gone in told.refused


@pytest.mark.parametrize("when", ["open", "round", "shares", "survivors", "unmask"])
def test_below_the_threshold_there_is_no_result_and_the_error_tells_why(tmp_path, when):
    """FED-68."""
    federation = Federation(tmp_path, plan())
    for name in ("north", "west"):
        federation.links[name].dead_from = when
    with pytest.raises(RoundError) as caught:
        federation.round()
    assert caught.value.code == "federated.round"
    assert "2 or more" in str(caught.value)
    assert "gone" in str(caught.value)
    assert "nonce" in str(caught.value)


def test_the_order_in_which_sites_stand_decides_nothing(tmp_path):
    """FED-66."""
    made = []
    for folder, order in (("a", sorted(ROWS)), ("b", sorted(ROWS, reverse=True))):
        federation = Federation(tmp_path / folder, plan())
        federation.links = {name: federation.links[name] for name in order}
        made.append(federation.round().adapter)
    assert made[0] == made[1]


def test_rounds_are_a_chain_and_go_on_where_they_were(tmp_path):
    """FED-4, FED-101."""
    federation = Federation(tmp_path, plan("fed-adam"))
    first = federation.round()
    federation.aggregator = federation.make_aggregator()
    federation.links = {name: LocalLink(federation.make_site(name)) for name in ROWS}
    second = federation.round()
    assert (first.summary["round"], second.summary["round"]) == (1, 2)
    assert first.adapter != second.adapter
    straight = Federation(tmp_path / "straight", plan("fed-adam"))
    straight.round()
    assert straight.round().adapter == second.adapter


def test_no_row_and_no_single_update_is_in_the_aggregators_store(tmp_path):
    """FED-65: neither text of a row nor a site's adapter; without masks the vector is there."""
    federation = Federation(tmp_path, plan())
    federation.round()
    held = federation.aggregator_bytes()
    for name in ROWS:
        store = tmp_path / name / "store"
        own = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
        start = start_arrays()
        for tensor in SHAPES:
            end = (start[tensor] + patterns(name)[tensor]).astype("<f4")
            vector = np.trunc((end.astype(float) - start[tensor]) * 2**BITS).astype("<i8")
            assert end.tobytes() in own
            assert end.tobytes() not in held
            assert vector.tobytes() not in held
            assert (ROWS[name] * vector).tobytes() not in held
        assert rows_of(name, 1) in own
        assert f"of {name}".encode() not in held


def test_without_masks_the_aggregator_does_see_each_update(tmp_path):
    """FED-65: the test above looks for the right bytes."""
    federation = Federation(tmp_path, plan(masks=False))
    federation.round()
    start, held = start_arrays(), federation.aggregator_bytes()
    for tensor in SHAPES:
        end = (start[tensor] + patterns("north")[tensor]).astype("<f4")
        vector = np.trunc((end.astype(float) - start[tensor]) * 2**BITS).astype("<i8")
        assert (ROWS["north"] * vector).tobytes() in held


# Bad input


def refused(federation, name):
    """Why a site fell out of a round that went on without it."""
    return federation.round().refused[name]


def test_a_nonce_that_was_used_before_is_refused(tmp_path):
    """FED-3: by every site, so there is no round."""
    federation = Federation(tmp_path, plan())
    federation.aggregator = federation.make_aggregator(nonce=lambda: b"again".ljust(32))
    federation.round()
    with pytest.raises(RoundError) as caught:
        federation.round()
    assert "nonce that was used before" in str(caught.value)


def test_a_nonce_of_a_round_that_failed_is_used_too(tmp_path):
    """FED-3: it is noted before anything is made for the round."""
    federation = Federation(tmp_path, plan())
    federation.aggregator = federation.make_aggregator(nonce=lambda: b"again".ljust(32))
    for name in ("north", "west"):
        federation.links[name].dead_from = "shares"
    with pytest.raises(RoundError):
        federation.round()
    for link in federation.links.values():
        link.dead_from = None
    with pytest.raises(RoundError, match="too few sites joined"):
        federation.round()


def forget(federation):
    """An aggregator that opens the round again, as if it had failed."""
    (federation.root / "aggregator" / "memory").unlink(missing_ok=True)
    federation.aggregator = federation.make_aggregator()


def test_no_second_sum_of_the_same_updates_is_unmasked(tmp_path):
    """FED-7: the last step of the first sum was kept from the sites, so that it seemed to fail."""
    federation = Federation(tmp_path, plan())
    for link in federation.links.values():
        link.dead_from = "result"
    federation.round()
    forget(federation)
    federation.links = {name: LocalLink(site) for name, site in federation.sites.items()}
    federation.links["west"].dead_from = "open"
    with pytest.raises(RoundError, match="too few sites joined") as caught:
        federation.round()
    assert "second sum" in str(caught.value)


def test_a_round_that_failed_before_anything_was_unmasked_can_be_opened_again(tmp_path):
    """FED-7."""
    federation = Federation(tmp_path, plan())
    for name in ("north", "west"):
        federation.links[name].dead_from = "survivors"
    with pytest.raises(RoundError):
        federation.round()
    for link in federation.links.values():
        link.dead_from = None
    assert federation.round().summary["survivors"] == sorted(ROWS)


@pytest.mark.parametrize("how", [{"lie": {"rows": 2000}}, {"say": 2000}])
def test_a_site_that_lies_about_its_rows_is_refused(tmp_path, how):
    """FED-63: what it said and what its signed card says are compared."""
    federation = Federation(tmp_path, plan())
    federation.replace("north", **how)
    error = refused(federation, "north")
    assert isinstance(error, SubmissionError)
    assert error.where == "north: rows"
    assert {error.expected, error.actual} == {"2", "2000"}


def test_a_site_with_another_base_does_not_join(tmp_path):
    """FED-5."""
    federation = Federation(tmp_path, plan())
    federation.replace("north", base={"model.safetensors": b"another"})
    assert "another base" in refused(federation, "north").reason


def test_a_site_whose_key_nobody_knows_is_refused(tmp_path):
    """FED-36: the aggregator knows another key of this name."""
    federation = Federation(tmp_path, plan())
    federation.keys["north"] = federation.keys["aggregator"]
    federation.replace("north")
    assert "another key" in refused(federation, "north").reason


def test_a_site_does_not_take_part_with_one_it_does_not_know(tmp_path):
    """FED-36."""
    federation = Federation(tmp_path, plan())
    some = {name: key for name, key in federation.peers.items() if name != "west"}
    federation.replace("north", peers=some)
    assert "does not know" in refused(federation, "north").reason


def test_an_aggregator_with_an_unknown_key_gets_no_answer(tmp_path):
    """FED-36."""
    federation = Federation(tmp_path, plan())
    federation.keys["aggregator"] = federation.keys["north"]
    federation.aggregator = federation.make_aggregator()
    with pytest.raises(RoundError, match="too few sites joined") as caught:
        federation.round()
    assert "another key" in str(caught.value)


def test_a_changed_plan_is_refused(tmp_path):
    """FED-4."""
    federation = Federation(tmp_path, plan())
    federation.round()
    federation.plan = plan(clip="1")
    federation.aggregator = federation.make_aggregator()
    with pytest.raises(RoundError, match="too few sites joined") as caught:
        federation.round()
    assert "plan" in str(caught.value)


def test_a_round_that_is_over_is_refused(tmp_path):
    """FED-4."""
    federation = Federation(tmp_path, plan())
    federation.round()
    (tmp_path / "aggregator" / "memory").unlink()
    federation.aggregator = federation.make_aggregator()
    with pytest.raises(RoundError) as caught:
        federation.round()
    assert "over" in str(caught.value)


def test_an_update_of_another_shape_is_refused_at_the_site(tmp_path):
    """FED-67."""
    federation = Federation(tmp_path, plan())
    federation.replace("north", lie={"shape": True})
    error = refused(federation, "north")
    assert error.code == "input.invalid"
    assert "does not fit" in error.reason


def forged(kind, name, make):
    def change(asked, answer):
        return {**answer, name: make(answer[name])} if asked == kind else answer

    return change


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("files", lambda files: {**files, "vector.u64": bytes(112)}, "not what was claimed"),
        ("files", lambda files: {**files, "../x": b""}, "not a file"),
        ("card", lambda card: {"card.json": b'{"rows":9}'}, "not what was claimed"),
        ("update_claim", lambda claim: claim[:-1], "not a claim"),
        ("seal_claim", lambda _: b"", "not a claim"),
        ("update", lambda data: data.replace(b"fed-avg", b"fed-abc"), "something else"),
    ],
)
def test_what_is_not_what_its_claim_says_is_refused(tmp_path, name, make, reason):
    """FED-62."""
    federation = Federation(tmp_path, plan())
    federation.links["north"].change = forged("shares", name, make)
    assert reason in refused(federation, "north").reason


def test_a_claim_by_another_sites_key_is_refused(tmp_path):
    """FED-62."""
    federation = Federation(tmp_path, plan())
    heard = {}
    federation.links["north"].change = lambda kind, answer: heard.update({kind: answer}) or answer
    federation.links["south"].change = lambda kind, answer: (
        {**heard["shares"]} if kind == "shares" else answer
    )
    assert "unknown key" in refused(federation, "south").reason


@pytest.mark.parametrize("what", ["own", "masks"])
def test_a_false_share_is_found_out(tmp_path, what):
    """FED-33: what shares give is compared with what the site had said."""
    federation = Federation(tmp_path, plan(threshold=2))
    federation.links["west"].dead_from = "shares"
    wrong = forged("unmask", what, lambda shares: {name: bytes(33) for name in shares})
    federation.links["north"].change = wrong
    with pytest.raises((SubmissionError, InvalidRecordError)):
        federation.round()


def test_a_site_signs_one_list_of_survivors_and_gives_shares_once(tmp_path):
    """FED-37."""
    from kolm_build.core.fields import Fields

    federation = Federation(tmp_path, plan())
    asked = {}

    def listen(kind, answer):
        asked[kind] = answer
        site = federation.sites["north"]
        if kind == "survivors":
            with pytest.raises(SubmissionError, match="second list"):
                site.handle(Fields({"kind": "survivors", "survivors": ["north", "south"]}))
        if kind == "unmask":
            assert site._current.entrusted == {}
        return answer

    federation.links["north"].change = listen
    federation.round()
    assert "unmask" in asked


def test_a_site_gives_no_share_before_enough_agree(tmp_path):
    """FED-37."""
    from kolm_build.core.fields import Fields

    federation = Federation(tmp_path, plan())

    def listen(kind, answer):
        if kind == "survivors":
            with pytest.raises(RoundError, match="too few sites agree"):
                federation.sites["north"].handle(Fields({"kind": "unmask", "signatures": {}}))
        return answer

    federation.links["north"].change = listen
    federation.round()


def test_a_site_signs_no_list_of_too_few(tmp_path):
    """FED-37, FED-68."""
    from kolm_build.core.fields import Fields

    federation = Federation(tmp_path, plan())

    def listen(kind, answer):
        if kind == "shares":
            site = federation.sites["north"]
            with pytest.raises(RoundError, match="too few sites stayed"):
                site.handle(Fields({"kind": "survivors", "survivors": ["north"]}))
            with pytest.raises(SubmissionError, match="not a list"):
                site.handle(Fields({"kind": "survivors", "survivors": ["nobody", "north"]}))
        return answer

    federation.links["north"].change = listen
    federation.round()


# Methods between parties


@pytest.mark.parametrize("method", ["scaffold", "fed-dyn", "fed-adam", "ffa-lora", "fed-prox"])
def test_masks_change_no_byte_of_a_method(tmp_path, method):
    """FED-34."""
    made = []
    for masks in (True, False):
        federation = Federation(tmp_path / str(masks), plan(method, masks=masks))
        federation.round()
        made.append(federation.round().adapter)
    assert made[0] == made[1]


@pytest.mark.parametrize("method", ["flora", "flex-lora"])
def test_factors_cross_only_without_masks(tmp_path, method):
    """FED-6, FED-90."""
    with pytest.raises(InvalidRecordError, match="masks hide"):
        plan(method)
    federation = Federation(tmp_path, plan(method, masks=False))
    federation.round()
    told = federation.round()
    assert told.summary["round"] == 2


def test_with_noise_the_sum_is_near_and_the_privacy_loss_is_told(tmp_path):
    """FED-42, FED-51."""
    made = plan("dp-fed-avg", weight="equal", noise_multiplier="0.5", clip="8")
    federation = Federation(tmp_path, made)
    told = federation.round()
    assert told.summary["delta"] == "0.00001"
    assert float(told.summary["epsilon"]) > 1
    again = Federation(tmp_path / "again", made).round()
    assert again.adapter != told.adapter, "noise comes from secret seeds"
    second = federation.round()
    assert float(second.summary["epsilon"]) > float(told.summary["epsilon"])
