"""The numerics class `native-1`: stock kernels, every determinism switch set (spec/native-1.md).

The bits belong to one kind of machine, one build of torch and one number of threads; all three
are in the derivation.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from kolm_build.core.numerics import NATIVE, Numerics
from kolm_build.errors import InvalidRecordError

MAX_SEED = (1 << 32) - 1
"""NumPy's generator takes no larger one."""


def apply(numerics: Numerics) -> None:
    """Make this process compute as `numerics` says: switches, threads and seeds.

    Raises:
        InvalidRecordError: It is another class, or the seed is too large.
    """
    if numerics.cls != NATIVE:
        raise InvalidRecordError(
            "another numerics class",
            where="numerics.class",
            expected=NATIVE,
            actual=numerics.cls,
        )
    set_switches()
    set_threads(numerics.threads)
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


def set_switches() -> None:
    """Turn on everything that makes stock kernels repeat themselves."""
    torch.use_deterministic_algorithms(True)  # noqa: FBT003 -- torch's own signature
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def set_threads(threads: int) -> None:
    """Compute with `threads` threads and one inter-operator thread."""
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # it may be set once only, and before any work
        torch.set_num_interop_threads(1)
