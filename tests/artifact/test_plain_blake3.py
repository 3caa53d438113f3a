"""BLAKE3 in plain Python agrees with the real one."""

from __future__ import annotations

import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from kolm_build.core.plain_blake3 import blake3 as plain


@given(st.integers(0, 9000), st.binary(min_size=1, max_size=9), st.none() | st.text(max_size=40))
@example(1024, b"a", None)
@example(1025, b"a", "x")
@example(2048, b"a", None)
@example(3073, b"a", None)
@example(4097, b"a", "kolm_build 2026 derivation v1")
def test_it_agrees_with_the_library(size, seed, context):
    data = (seed * size)[:size]
    expected = blake3.blake3(data, derive_key_context=context).digest()
    assert plain(data, context=context) == expected
