"""The numerics class `native-1`: stock kernels, every determinism switch set (spec/native-1.md).

The bits belong to one kind of machine, one build of torch and one number of threads; all three
are in the derivation. `apply` comes first in every step that computes with floating point.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from kolm_build.core.numerics import Numerics
from kolm_build.errors import InvalidRecordError, UnsupportedVersionError

MAX_SEED = (1 << 32) - 1
"""NumPy's generator takes no larger one."""


def apply(numerics: Numerics) -> None:
    """Make this process compute as `numerics` says: switches, threads and seeds.

    Raises:
        UnsupportedVersionError: The class is `portable-1`, which this version does not have.
        InvalidRecordError: The class allows no floating point, or the seed is too large.
    """
    if numerics.cls == "portable-1":
        raise UnsupportedVersionError(
            "the numerics class portable-1 is not available in this version",
            where="numerics.class",
            expected="native-1",
            advice="Set class = 'native-1' under [numerics]; a later kolm brings portable-1.",
        )
    if numerics.cls != "native-1":
        raise InvalidRecordError(
            "this step computes with floating point",
            where="numerics.class",
            expected="native-1",
            actual=numerics.cls,
        )
    _set_switches()
    _set_threads(numerics.threads)
    seed(numerics.seed)


def seed(value: int) -> None:
    """Seed every generator that a step or its libraries may draw from.

    Raises:
        InvalidRecordError: `value` is larger than NumPy's generator takes.
    """
    if value > MAX_SEED:
        raise InvalidRecordError(
            "seed out of range",
            where="numerics.seed",
            expected=f"at most {MAX_SEED}",
            actual=str(value),
        )
    random.seed(value)
    np.random.seed(value)  # the libraries draw from the global generator
    torch.manual_seed(value)


def _set_switches() -> None:
    torch.use_deterministic_algorithms(True)  # noqa: FBT003 -- torch's own signature
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # it may be set once only, and before any work
        torch.set_num_interop_threads(1)
