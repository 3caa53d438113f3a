"""Kernels write inside their memory: the allocator's own checks see what they touch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.models import ROOT

# Sizes at which scratch memory ends with a page: a write behind it meets the heap's own notes.
PRODUCTS = """
import sys
import torch
from kolm_build.numerics import portable

portable.load()
portable.set_isa(sys.argv[1])
portable.activate()
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for m in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
        for k in (512, 1024, 1536, 2048):
            x, w = torch.ones(m, k, dtype=dtype), torch.ones(16, k, dtype=dtype)
            assert torch.nn.functional.linear(x, w).eq(k).all()
            assert (x.T.contiguous().T @ w.T.contiguous()).eq(k).all()
            kept = [torch.empty(1000 + 13 * one) for one in range(20)]
"""


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "baseline"])
def test_products_of_any_size_leave_the_heap_whole(isa):
    from kolm_build.numerics import portable

    if isa not in portable.isas():
        pytest.skip("not of this machine")
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS, isa],
        env=os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
