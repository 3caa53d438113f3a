"""The class native-1 sets every switch, and a class without floating point is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from kolm_build.core.numerics import Numerics
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics import native
from kolm_build.numerics.apply import applied


def draws() -> tuple:
    return random.getrandbits(64), np.random.rand(), torch.rand(()).item()


def test_every_switch_is_set():
    """NAT-1, NAT-2."""
    native.apply(Numerics(cls="native-1", threads=1))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.mkldnn.deterministic
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.benchmark
    assert torch.get_num_threads() == 1
    assert torch.get_num_interop_threads() == 1


def test_every_generator_is_seeded():
    """NAT-3."""
    native.apply(Numerics(cls="native-1", seed=11))
    first = draws()
    native.apply(Numerics(cls="native-1", seed=11))
    assert draws() == first
    native.apply(Numerics(cls="native-1", seed=12))
    assert all(one != other for one, other in zip(draws(), first, strict=True))


def test_a_seed_that_numpy_cannot_take_is_refused():
    """NAT-3."""
    native.seed(native.MAX_SEED)
    with pytest.raises(InvalidRecordError, match="seed"):
        native.apply(Numerics(cls="native-1", seed=native.MAX_SEED + 1))


def test_the_exact_class_has_no_floating_point():
    """NAT-4."""
    numerics = Numerics(cls="exact-1")
    with pytest.raises(InvalidRecordError, match="floating point"), applied(numerics):
        pytest.fail("nothing may be computed")


def test_the_door_of_all_classes_applies_the_native_one():
    """NAT-2, NAT-3."""
    with applied(Numerics(cls="native-1", seed=11, threads=2)):
        first = draws()
        assert torch.get_num_threads() == 2
    with applied(Numerics(cls="native-1", seed=11, threads=1)):
        assert draws() == first
