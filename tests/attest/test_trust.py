"""The trust file (spec/attest.md)."""

from __future__ import annotations

import pytest

from kolm_build.attest.trust import parse_trust
from kolm_build.core.quorum import Policy, Window
from kolm_build.errors import KeyFileError
from tests.attest.helping import key

ANNA, BEN = str(key(1).public), str(key(2).public)
GOOD = f"""version = 1
[threshold]
builder = 1
[[principal]]
name = "anna"
roles = ["builder", "approver"]
keys = ["{ANNA}"]
"""


def test_a_trust_file_names_principals_and_thresholds():
    """TRUST-2."""
    found = parse_trust(GOOD.encode(), "trust.toml")
    assert found.thresholds == {"builder": 1}
    signer = found.signer(key(1).public.keyid)
    assert signer is not None
    assert signer[0].name == "anna"
    assert found.signer(key(2).public.keyid) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 3"),
        ("version = 1", 'version = "1"'),
        ("version = 1\n", ""),
        ("builder = 1", "builder = 0"),
        ("builder = 1", "builder = 2"),
        ("builder = 1", "builder = true"),
        ("builder = 1", "bilder = 1"),
        ("builder = 1", "log = 1"),
        ("builder = 1", ""),
        ('["builder", "approver"]', "[]"),
        ('["builder", "approver"]', '["root"]'),
        ('["builder", "approver"]', '["builder", "builder"]'),
        (f'["{ANNA}"]', "[]"),
        (f'["{ANNA}"]', f'["{ANNA}", "{ANNA}"]'),
        (f'["{ANNA}"]', '["ed25519:' + "01" + "0" * 62 + '"]'),
        (f'["{ANNA}"]', "[7]"),
        ('name = "anna"', 'name = "Anna B"'),
        ('name = "anna"', 'name = "anna"\nemail = "a@b"'),
        ("[threshold]", "[threshold"),
    ],
)
def test_a_trust_file_that_is_not_strict_is_refused(old, new):
    """TRUST-2, KEY-2; cases 22 and 24 of the threat model."""
    assert old in GOOD
    with pytest.raises(KeyFileError) as caught:
        parse_trust(GOOD.replace(old, new).encode(), "trust.toml")
    assert caught.value.file == "trust.toml"


@pytest.mark.parametrize("other", [("anna", BEN), ("ben", ANNA)])
def test_a_name_or_key_that_is_there_twice_is_refused(other):
    """TRUST-2: one key of two principals would count twice."""
    name, public = other
    more = f'[[principal]]\nname = "{name}"\nroles = ["builder"]\nkeys = ["{public}"]\n'
    with pytest.raises(KeyFileError, match="twice"):
        parse_trust((GOOD + more).encode(), "trust.toml")


def test_bytes_that_are_no_text_are_refused():
    for data in (b"\xff", b"version = " + b"[" * 100_000, b" " * (1 << 21)):
        with pytest.raises(KeyFileError):
            parse_trust(data, "trust.toml")


CAT, LOGGER = str(key(3).public), str(key(4).public)
NEWER = f"""version = 2
[threshold]
builder = 2
[claims]
statements = ["rebuilt"]
distinct = ["machine", "organisation"]
contested = "majority"
committed = true
grade = "R2"
[[principal]]
name = "anna"
organisation = "acme"
roles = ["builder"]
keys = ["{ANNA}", {{key = "{CAT}", from = 2026-01-01T00:00:00Z, until = 2027-01-01T00:00:00Z}}]
[[principal]]
name = "ben"
organisation = "cern"
roles = ["builder"]
keys = [{{key = "{BEN}", revoked = 2026-08-01T00:00:00Z}}]
[[principal]]
name = "log"
roles = ["log"]
keys = ["{LOGGER}"]
"""


def test_a_newer_trust_file_says_which_claims_count():
    """TRUST-2."""
    found = parse_trust(NEWER.encode(), "trust.toml")
    assert found.quorum == Policy(
        require=2,
        builders={"anna": "acme", "ben": "cern"},
        statements=("rebuilt",),
        distinct=("organisation", "machine"),
        contested="majority",
        committed=True,
        grade="R2",
    )
    anna, ben, _ = found.principals
    assert anna.window(key(1).public.keyid).is_open
    assert anna.window(key(3).public.keyid) == Window(
        start="2026-01-01T00:00:00Z", end="2027-01-01T00:00:00Z"
    )
    assert ben.window(key(2).public.keyid) == Window(revoked="2026-08-01T00:00:00Z")


def test_an_older_trust_file_means_what_it_meant():
    """QUORUM-1."""
    found = parse_trust(GOOD.encode(), "trust.toml")
    assert found.quorum == Policy(require=1, builders={"anna": None})
    assert found == parse_trust(GOOD.replace("version = 1", "version = 2").encode(), "trust.toml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[threshold]\nbuilder = 1\n", "[threshold]\nbuilder = 1\n[claims]\n"),
        ('name = "anna"', 'name = "anna"\norganisation = "acme"'),
        (f'["{ANNA}"]', f'[{{key = "{ANNA}"}}]'),
    ],
)
def test_an_older_trust_file_may_not_say_what_is_newer(old, new):
    """QUORUM-1."""
    assert old in GOOD
    with pytest.raises(KeyFileError, match="more than a trust file of version 1"):
        parse_trust(GOOD.replace(old, new).encode(), "trust.toml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["rebuilt"]', "[]"),
        ('["rebuilt"]', '["rebuilt", "copied"]'),
        ('["rebuilt"]', '["rebuilt", "rebuilt"]'),
        ('["rebuilt"]', "[7]"),
        ('"machine", "organisation"', '"machine", "machine"'),
        ('"machine", "organisation"', '"host"'),
        ('"majority"', '"ignore"'),
        ("committed = true", "committed = 1"),
        ('"R2"', '"R5"'),
        ("2026-08-01T00:00:00Z", "2026-08-01T00:00:00"),
        ("2026-08-01T00:00:00Z", "2026-08-01T00:00:00+01:00"),
        ("2026-08-01T00:00:00Z", "2026-08-01T00:00:00.5Z"),
        ("2026-08-01T00:00:00Z", "2026-08-01"),
        ("2026-08-01T00:00:00Z", '"2026-08-01T00:00:00Z"'),
        ("revoked = ", "withdrawn = "),
        ("until = 2027", "until = 2026"),
        ("grade =", "grades ="),
        ('"acme"', '"Acme Inc."'),
    ],
)
def test_a_newer_trust_file_that_is_not_strict_is_refused(old, new):
    """QUORUM-2, QUORUM-4."""
    assert old in NEWER
    with pytest.raises(KeyFileError):
        parse_trust(NEWER.replace(old, new).encode(), "trust.toml")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("builder = 2", "builder = 3", "cannot be met"),
        ('"cern"', '"acme"', "can never be met"),
        ('organisation = "cern"\n', "", "a builder without an organisation"),
        ('roles = ["log"]', 'roles = ["approver"]', "nobody is one"),
        ('"R2"', '"R5"', "unknown word"),
    ],
)
def test_a_policy_that_can_never_be_met_is_refused(old, new, why):
    """QUORUM-3."""
    with pytest.raises(KeyFileError, match=why):
        parse_trust(NEWER.replace(old, new).encode(), "trust.toml")


def test_the_highest_grade_takes_two_builders():
    """QUORUM-3."""
    text = NEWER.replace('"R2"', '"R4"').replace("committed = true", "committed = false")
    assert parse_trust(text.encode(), "trust.toml").quorum.grade == "R4"
    alone = text.replace("builder = 2", "approver = 1").replace(
        'organisation = "cern"\nroles = ["builder"]', 'roles = ["approver"]'
    )
    with pytest.raises(KeyFileError, match="takes two builders"):
        parse_trust(alone.encode(), "trust.toml")


def test_a_builder_whose_key_no_log_can_date_is_not_one_of_those_there_are():
    """QUORUM-4."""
    text = NEWER.replace("committed = true", "").replace('roles = ["log"]', 'roles = ["approver"]')
    with pytest.raises(KeyFileError, match="can never be met") as caught:
        parse_trust(text.encode(), "trust.toml")
    assert caught.value.where == "threshold.builder"
