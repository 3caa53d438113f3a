"""Whom to believe: signed claims, thresholds, caches that disagree."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.attest.claims import PREDICATE, sign_claim
from kolm_build.attest.envelope import Envelope, Signature
from kolm_build.core import strict_json
from kolm_build.core.digest import Digest
from kolm_build.core.quorum import BUILT, COPIED, REBUILT, Policy, Vote, decide
from kolm_build.core.realisation import Realisation
from kolm_build.errors import NotReproducibleError, SignatureError
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.local import LocalStore
from kolm_build.store.remote.folder import FolderPlace
from kolm_build.store.remote.publish import Publisher
from kolm_build.surfaces.substituting import fact_of, signed
from tests.engine.test_scheduler import out
from tests.store.builders import derivation, make_folder, realise
from tests.substituter.copying import (
    QUICK,
    builder_of,
    publish,
    publish_claims,
    signing_key,
    substitutes,
    trusting,
)
from tests.substituter.test_faults import B, build, cached

__all__ = ["cached"]

ONE, TWO, THREE = signing_key(b"one"), signing_key(b"two"), signing_key(b"three")


@pytest.fixture
def claim(store, tmp_path):
    tree = store.ingest(make_folder(tmp_path / "f", {"f": b"f"}))
    resolved = realise(store, derivation(), tree, sandbox="bubblewrap", wall_ms=12)
    return store.realisations(resolved, "out")[0]


def test_a_claim_is_signed_and_found_by_its_builder(claim):
    """CLAIM-1, CLAIM-4."""
    envelope = sign_claim(fact_of(claim), kind=BUILT, key=ONE)
    assert envelope == sign_claim(fact_of(claim), kind=BUILT, key=ONE)
    assert builder_of(envelope, fact_of(claim), trusting(me=ONE)) == "me"
    assert builder_of(envelope, fact_of(claim), trusting(me=TWO)) is None
    statement = strict_json.loads(Envelope.decode(envelope).payload)
    assert statement["predicateType"] == PREDICATE == "urn:kolm:predicate:realisation:1"
    assert set(statement["predicate"]) == {
        "type", "resolved", "output", "content", "derivation", "circumstances",
    }  # fmt: skip
    assert statement["predicate"]["content"] == str(claim.realisation.content)
    (subject,) = statement["subject"]
    assert subject["digest"]["blake3"] == Digest.of_blob(claim.realisation.encode()).hex


def test_a_copy_is_no_build(claim):
    """CLAIM-2."""
    fact = fact_of(claim)
    for kind, voter in ((BUILT, "me"), (REBUILT, "me"), (COPIED, None)):
        assert builder_of(sign_claim(fact, kind=kind, key=ONE), fact, trusting(me=ONE)) == voter
    policy = trusting(me=ONE)
    evaluator = replace(policy.principals[0], name="you", roles=("evaluator",), keys=(TWO.public,))
    wider = replace(policy, principals=(*policy.principals, evaluator))
    assert builder_of(sign_claim(fact, kind=BUILT, key=TWO), fact, wider) is None


def test_a_claim_about_something_else_a_forgery_and_nonsense_do_not_count(claim):
    """CLAIM-3."""
    envelope, trust = sign_claim(fact_of(claim), kind=BUILT, key=ONE), trusting(me=ONE)
    for change in (
        {"circumstances": {"sandbox": "none"}},
        {"derivation": Digest.of_blob(b"x")},
        {"realisation": replace(claim.realisation, content=Digest.of_blob(b"x"))},
        {"realisation": replace(claim.realisation, output="other")},
        {"realisation": replace(claim.realisation, resolved=Digest.of_blob(b"x"))},
    ):
        with pytest.raises(SignatureError, match="something else"):
            builder_of(envelope, fact_of(replace(claim, **change)), trust)
    opened = Envelope.decode(envelope)
    forged = replace(opened, signatures=(Signature(keyid=ONE.public.keyid, sig=bytes(64)),))
    with pytest.raises(SignatureError, match="forged"):
        builder_of(forged.encode(), fact_of(claim), trust)
    twice = Signature(keyid=TWO.public.keyid, sig=bytes(64))
    for bad in (
        b"", b"{}", b"\xff", envelope[:-1], envelope + b" ",
        replace(opened, payload_type="text/plain").encode(),
        replace(opened, payload=b"{}").encode(),
        replace(opened, signatures=(*opened.signatures, twice)).encode(),
    ):  # fmt: skip
        with pytest.raises(SignatureError):
            builder_of(bad, fact_of(claim), trust)


def test_a_claim_signed_by_another_keeps_its_signature(claim):
    theirs = signed(claim, ONE)
    assert signed(theirs, TWO) == theirs
    assert signed(claim, None) == claim
    assert StoredRealisation.decode(theirs.encode()) == theirs


VOTES = st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("abcd")), max_size=8)


@given(VOTES, st.integers(1, 4))
def test_agreement_is_enough_principals_for_one_content_and_several_are_an_alarm(votes, threshold):
    """SUB-15, SUB-16."""
    policy = Policy(require=threshold, builders=dict.fromkeys("abcd"))
    cast = [Vote(content=content, signer=voter, kind=BUILT) for content, voter in votes]
    found = decide(policy, cast)
    claimed = {content for content, _ in votes}
    assert found.is_contested == (len(claimed) > 1)
    enough = len(claimed) == 1 and len({voter for _, voter in votes}) >= threshold
    assert found.usable == (claimed.pop() if enough else None)
    assert decide(policy, reversed(cast)) == found


@pytest.mark.parametrize("key", [None, TWO])
def test_an_unsigned_or_unknown_claim_is_not_believed_and_the_thing_is_built(
    key, store, other, cached, tmp_path
):
    """SUB-14."""
    contents, folder = cached
    unknown = FolderPlace(str(folder.parent / "unknown"))
    publish(store, unknown, contents[out(B)])
    for resolved in _resolved_of(folder):
        publish_claims(store, unknown, resolved, key=key)
    found, built, _, troubles = build(other, tmp_path, unknown)
    assert (found, built, troubles) == (contents, ["a", "bb"], [])


def test_without_a_trust_file_nobody_is_believed(cached, other, tmp_path):
    """SUB-14."""
    contents, folder = cached
    found, built, _, _ = build(other, tmp_path, FolderPlace(str(folder)), trust=None)
    assert (found, built) == (contents, ["a", "bb"])


def _resolved_of(folder):
    return [
        Digest(bytes.fromhex(path.name)) for path in (folder / "real").rglob("*") if path.is_file()
    ]


def _claim_otherwise(place, folder, resolved, key, text=b"forged"):
    """A cache that claims another content for `resolved`, which it has."""
    with LocalStore.open(folder / f"otherwise-{text.decode()}") as store:
        tree = store.ingest(make_folder(folder / f"files-{text.decode()}", {"text": text}))
        drv = store.put_derivation(derivation())
        fact = Realisation(resolved=resolved, output="out", content=tree)
        store.add_realisation(fact, derivation=drv, circumstances={"sandbox": "bubblewrap"})
        publish(store, place, tree)
        publish_claims(store, place, resolved, key=key)


def test_two_caches_that_disagree_are_an_alarm(cached, other, place, tmp_path):
    """SUB-16."""
    _, folder = cached
    rival = FolderPlace(str(place / "rival"))
    resolved = B.resolved_digest_with({need: cached[0][need] for need in B.needs})
    _claim_otherwise(rival, tmp_path, resolved, TWO)
    trust = trusting(builder=ONE, other=TWO)
    for places in ((FolderPlace(str(folder)), rival), (rival, FolderPlace(str(folder)))):
        with pytest.raises(NotReproducibleError, match="2 contents are claimed"):
            build(other, tmp_path, *places, trust=trust)
    assert other.contents_of([(resolved, "out")]) == {}, "what is contested is not kept"
    # One whom nobody trusts cannot raise the alarm.
    found, built, _, _ = build(other, tmp_path, FolderPlace(str(folder)), rival)
    assert (found, built) == (cached[0], [])


def test_so_many_builders_must_agree_as_the_threshold_says(cached, store, other, place, tmp_path):
    """SUB-15."""
    contents, folder = cached
    trust = trusting(2, builder=ONE, other=TWO)
    with LocalStore.open(place / "alone") as alone:
        found, built, _, _ = build(alone, tmp_path, FolderPlace(str(folder)), trust=trust)
        assert (found, built) == (contents, ["a", "bb"])
    second = FolderPlace(str(place / "second"))
    for resolved in _resolved_of(folder):
        publish_claims(store, second, resolved, key=TWO)
    found, built, _, _ = build(other, tmp_path, FolderPlace(str(folder)), second, trust=trust)
    assert (found, built) == (contents, [])
    assert len(other.realisations(_b(contents), "out")) == 2


def _b(contents):
    return B.resolved_digest_with({need: contents[need] for need in B.needs})


def test_what_was_believed_is_kept_with_its_signature_even_where_its_content_is_not_here(
    cached, other, tmp_path
):
    """SUB-17."""
    contents, folder = cached
    build(other, tmp_path, FolderPlace(str(folder)))
    for resolved in _resolved_of(folder):
        (kept,) = other.realisations(resolved, "out")
        assert builder_of(kept.envelope, fact_of(kept), trusting(me=ONE)) == "me"
    with LocalStore.open(other.root, read_only=True) as again:
        here = {one: again.has_tree(content) for one, content in contents.items()}
    assert here == {one: one == out(B) for one in contents}
    assert other.fsck(deep=True).is_clean


def test_a_forged_claim_is_told_and_not_believed(cached, store, other, place, tmp_path):
    """CLAIM-3."""
    contents, folder = cached
    rival = FolderPlace(str(place / "rival"))
    publisher = Publisher(rival, store.giver(), limits=QUICK, jobs=1, on_bytes=lambda *_: None)
    publisher.begin()
    for resolved in _resolved_of(folder):
        for claim in store.realisations(resolved, "out"):
            made = replace(claim.realisation, content=Digest.of_blob(b"forged"))
            envelope = signed(claim, ONE).envelope
            publisher.claims(resolved, [replace(claim, realisation=made, envelope=envelope)])
    found, built, _, troubles = build(other, tmp_path, rival)
    assert (found, built) == (contents, ["a", "bb"])
    assert {type(error) for error in troubles} == {SignatureError}


def test_a_claim_made_from_another_derivation_keeps_its_content_from_the_collector(
    store, other, place, tmp_path
):
    """SUB-17."""
    tree = store.ingest(make_folder(tmp_path / "f", {"f": b"f"}))
    resolved = realise(store, derivation("theirs"), tree, sandbox="bubblewrap")
    cache = FolderPlace(str(place / "cache"))
    publish(store, cache, tree)
    publish_claims(store, cache, resolved, key=ONE)
    mine = other.put_derivation(derivation("mine"))
    with substitutes(other, cache, trust=trusting(me=ONE)) as (made, _):
        assert made.contents_of([(resolved, "out")]) == {(resolved, "out"): (tree,)}
        assert made.fetch(tree, lambda *_: None)
        made.keep(resolved, mine)
    other.add_root("mine", derivations=[mine])
    root = other.root
    other.close()
    with LocalStore.open(root) as again:
        again.collect(dry_run=False)
        assert again.has_tree(tree)
