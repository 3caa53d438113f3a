"""Shares, streams and masks: what a round keeps secret (spec/algorithms-federated.md)."""

from __future__ import annotations

import itertools
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core.federated import shamir
from kolm_build.core.federated.keystream import Bits, keystream
from kolm_build.errors import InvalidRecordError

SECRETS = st.binary(min_size=32, max_size=32)


def shares_of(secret, *, threshold, shares, salt=b""):
    """Shares with randomness that is only pretended."""
    needed = shamir.random_bytes_needed(threshold)
    stream = b"".join(sha256(salt + bytes([at])).digest() for at in range(needed // 32 + 1))
    return shamir.split(secret, threshold=threshold, shares=shares, random=stream[:needed])


def is_prime(number):
    """Miller and Rabin's test with forty bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, odd, number)
        if x in (1, number - 1):
            continue
        if not any((x := x * x % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_is_the_least_prime_above_two_to_the_256():
    """FED-10."""
    assert is_prime(shamir.PRIME)
    assert not any(is_prime(number) for number in range((1 << 256) + 1, shamir.PRIME))


@given(SECRETS, st.integers(1, 5), st.integers(0, 3), st.randoms())
def test_any_threshold_of_shares_gives_the_secret_and_fewer_are_refused(
    secret, threshold, more, random
):
    """FED-11, FED-12."""
    shares = shares_of(secret, threshold=threshold, shares=threshold + more)
    chosen = random.sample(sorted(shares), threshold)
    assert shamir.join({one: shares[one] for one in chosen}, threshold=threshold) == secret
    with pytest.raises(InvalidRecordError, match="too few shares"):
        shamir.join({one: shares[one] for one in chosen[1:]}, threshold=threshold)


def test_every_subset_of_enough_shares_gives_the_same_secret():
    """FED-12."""
    secret = bytes(range(32))
    shares = shares_of(secret, threshold=3, shares=5)
    for size in (3, 4, 5):
        for chosen in itertools.combinations(shares, size):
            assert shamir.join({one: shares[one] for one in chosen}, threshold=3) == secret


@given(SECRETS, SECRETS)
def test_fewer_shares_fit_every_secret(secret, other):
    """FED-12: for any other secret there is a polynomial through the same share."""
    (first, *_) = shares_of(secret, threshold=2, shares=3).values()
    slope = (int.from_bytes(first, "big") - int.from_bytes(other, "big")) % shamir.PRIME
    again = shamir.split(other, threshold=2, shares=3, random=slope.to_bytes(64, "big"))
    assert again[1] == first


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ({1: bytes(33), 2: b"\xff" * 33}, "not a share"),
        ({0: bytes(33), 2: bytes(33)}, "not a share"),
        ({1: bytes(32), 2: bytes(33)}, "not a share"),
    ],
)
def test_what_is_no_share_is_refused(shares, reason):
    with pytest.raises(InvalidRecordError, match=reason):
        shamir.join(shares, threshold=2)


@pytest.mark.parametrize("threshold", [0, 4])
def test_a_threshold_that_cannot_be_is_refused(threshold):
    with pytest.raises(InvalidRecordError, match="threshold"):
        shamir.split(bytes(32), threshold=threshold, shares=3, random=b"")


def test_a_secret_of_another_length_or_too_little_randomness_is_refused():
    with pytest.raises(InvalidRecordError, match="32 bytes"):
        shamir.split(bytes(31), threshold=1, shares=3, random=b"")
    with pytest.raises(InvalidRecordError, match="random"):
        shamir.split(bytes(32), threshold=2, shares=3, random=bytes(63))


def test_a_stream_is_one_stream_wherever_it_is_read_from():
    """FED-30."""
    whole = keystream(bytes(32), purpose="mask", length=1000)
    assert keystream(bytes(32), purpose="mask", length=100, start=333) == whole[333:433]
    assert keystream(bytes(32), purpose="noise", length=1000) != whole
    with pytest.raises(InvalidRecordError, match="32 bytes"):
        keystream(b"short", purpose="mask", length=1)


def test_bits_come_lowest_first_and_numbers_below_a_bound_are_all_drawn():
    """FED-41."""
    stream = keystream(bytes(32), purpose="noise", length=2000)
    flat = np.unpackbits(np.frombuffer(stream, np.uint8), bitorder="little")
    bits = Bits(bytes(32))
    taken = [bits.take(7) for _ in range(2000)]
    wanted = [int(sum(int(flat[7 * at + i]) << i for i in range(7))) for at in range(2000)]
    assert taken == wanted
    drawn = [Bits(bytes([at]) * 32).below(5) for at in range(200)]
    assert set(drawn) == {0, 1, 2, 3, 4}
