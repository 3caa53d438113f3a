"""The trust file (spec/attest.md)."""

from __future__ import annotations

import pytest

from kolm_build.attest.trust import parse_trust
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
        ("version = 1", "version = 2"),
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
