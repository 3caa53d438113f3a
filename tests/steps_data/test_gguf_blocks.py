"""Blocks as ggml's own quantisers write them, and as the package gguf reads them."""

import hashlib
from hashlib import shake_256

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._gguf_blocks import block_values, blocks

COLUMNS = 1536

GGML = {
    Kind.Q4_0: "50d01b1f70faefbee5c0ccf95fe9c33c5902a29556a93585d00ac8ec05122f1f",
    Kind.Q5_0: "ac0d787ee45ec05faff766ec5483270abadbefcd2e275382e5188b3537f25a0c",
    Kind.Q8_0: "a9f7feb8f7093ac2d742e21da74041f89e97ff6c2d6885f6d25047a3db20c272",
    Kind.Q4_K: "58f0ce3a3549a257212103c190a766db70c1721e90dd1de72239972eef699e3e",
    Kind.Q6_K: "400732795a60e3b37f846c609fc8c8d4df050f22381c8fb674195d6c062104e9",
}
"""SHA-256 of what `ggml_quantize_chunk` of llama.cpp b11549 makes of `rows`, no matrix given."""


def rows():
    """64 rows of uniform values, and rows that are zero, constant, tiny, and have one outlier."""
    draws = np.frombuffer(shake_256(b"blocks").digest(2 * 64 * COLUMNS), "<u2")
    values = ((draws.astype(np.float32) - 32767.5) / 65536).reshape(64, COLUMNS)
    values[3] = 0
    values[4] = 0.25
    values[5] = -0.25
    values[6, :256] = 1e-20
    values[7, ::97] = 8
    return values


@pytest.mark.parametrize("kind", GGML, ids=lambda kind: kind.name)
def test_blocks_are_the_bytes_of_ggml(kind):
    """EXPORT-15."""
    made = blocks(rows(), kind)
    assert hashlib.sha256(made.tobytes()).hexdigest() == GGML[kind]


@pytest.mark.parametrize(
    ("kind", "steps"),
    [(Kind.Q4_0, 16), (Kind.Q5_0, 32), (Kind.Q8_0, 254), (Kind.Q4_K, 15), (Kind.Q6_K, 64)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_package_gguf_reads_what_was_meant(kind, steps):
    """No value is off by more than a step of the widest sub-block of its row."""
    values = rows()[8:]
    read = quants.dequantize(blocks(values, kind), kind)
    widest = values.max(axis=1) - values.min(axis=1)
    assert (np.abs(read - values).max(axis=1) <= 1.05 * widest / steps).all()


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([Kind.Q4_K, Kind.Q6_K]),
    st.sampled_from([1e-30, 1e-3, 1.0, 20.0]),
)
@settings(max_examples=40)
def test_a_super_block_does_not_depend_on_its_neighbours(seed, kind, size):
    """Rows together are the rows alone: nothing is summed across blocks."""
    draws = np.frombuffer(shake_256(seed.to_bytes(4)).digest(2 * 4 * 512), "<i2")
    values = (draws.astype(np.float32) * np.float32(size)).reshape(4, 512)
    together = blocks(values, kind)
    assert (together == np.concatenate([blocks(row[None], kind) for row in values])).all()


@pytest.mark.parametrize("kind", [*GGML, Kind.F16], ids=lambda kind: kind.name)
def test_a_scale_that_half_precision_cannot_say_is_refused(kind):
    """EXPORT-14: ggml writes infinity there."""
    with pytest.raises(InvalidRecordError, match="too large for half precision"):
        blocks(rows()[8:10] * np.float32(1e9), kind)


def test_what_a_finer_grid_cannot_do_better_is_left():
    """A row of sixteen values on one grid is stored exactly in Q4_K."""
    values = np.tile(np.arange(16, dtype=np.float32), 16)[None] * np.float32(63 * 0.25)
    read = quants.dequantize(blocks(values, Kind.Q4_K), Kind.Q4_K)
    assert np.abs(read - values).max() <= 1e-3 * values.max()


def test_blocks_have_the_sizes_of_ggml():
    assert {kind.name: block_values(kind) for kind in (*GGML, Kind.F16)} == {
        "Q4_0": 32,
        "Q5_0": 32,
        "Q8_0": 32,
        "Q4_K": 256,
        "Q6_K": 256,
        "F16": 1,
    }
