"""The numerics class `native-1`: stock kernels, every determinism switch set (spec/native-1.md).

The bits belong to one kind of machine, one build of torch and one number of threads; all three
are in the derivation.
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from kolm_build.core.numerics import NATIVE, Numerics
from kolm_build.errors import InvalidRecordError, MachineError

MAX_SEED = (1 << 32) - 1
"""NumPy's generator takes no larger one."""

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACE_VALUE = ":4096:8"
"""With one workspace a stream, cuBLAS repeats its bits (cuBLAS's own documentation)."""


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
    """Set every switch that makes stock kernels repeat their bits, on the CPU and on a GPU.

    Raises:
        MachineError: A GPU computes already, and cuBLAS may have taken a workspace that makes its
            products depend on what runs beside them.
    """
    _require_workspace()
    torch.use_deterministic_algorithms(True)  # noqa: FBT003 -- torch's own signature
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if torch.cuda.is_available():
        _write_attention_out()


def _write_attention_out() -> None:
    """The fused kernels' choice depends on the GPU and on the shapes."""
    torch.backends.cuda.enable_flash_sdp(False)  # noqa: FBT003
    torch.backends.cuda.enable_mem_efficient_sdp(False)  # noqa: FBT003
    torch.backends.cuda.enable_cudnn_sdp(False)  # noqa: FBT003
    torch.backends.cuda.enable_math_sdp(True)  # noqa: FBT003


def switches() -> dict[str, bool | str]:
    """The switches as they are now, by name: what `check_switches` looks at, for a record."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    attention: dict[str, bool | str] = {
        "sdp_flash": cuda.flash_sdp_enabled(),
        "sdp_mem_efficient": cuda.mem_efficient_sdp_enabled(),
        "sdp_cudnn": cuda.cudnn_sdp_enabled(),
        "sdp_math": cuda.math_sdp_enabled(),
    }
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "matmul_tf32": bool(cuda.matmul.allow_tf32),
        "matmul_fp16_reduction": cuda.matmul.allow_fp16_reduced_precision_reduction is not False,
        "matmul_bf16_reduction": cuda.matmul.allow_bf16_reduced_precision_reduction is not False,
        "cudnn_tf32": bool(cudnn.allow_tf32),
        "cudnn_benchmark": bool(cudnn.benchmark),
        "cudnn_deterministic": bool(cudnn.deterministic),
        "cublas_workspace": os.environ.get(WORKSPACE, ""),
        **(attention if torch.cuda.is_available() else {}),
    }


EXPECTED_SWITCHES: dict[str, bool | str] = {
    "deterministic_algorithms": True, "float32_matmul_precision": "highest",
    "matmul_tf32": False, "matmul_fp16_reduction": False, "matmul_bf16_reduction": False,
    "cudnn_tf32": False, "cudnn_benchmark": False, "cudnn_deterministic": True,
    "sdp_flash": False, "sdp_mem_efficient": False, "sdp_cudnn": False, "sdp_math": True,
    "cublas_workspace": WORKSPACE_VALUE,
}  # fmt: skip
"""What `set_switches` leaves behind; the choice of attention only where there is a GPU."""


def check_switches() -> None:
    """Refuse a process in which something has turned a switch back.

    Raises:
        MachineError: Names the first switch that is not as `set_switches` left it.
    """
    for name, found in switches().items():
        if found != EXPECTED_SWITCHES[name]:
            raise MachineError(
                "a determinism switch was turned back",
                where=f"native-1: {name}",
                expected=str(EXPECTED_SWITCHES[name]),
                actual=str(found),
                advice="Something in the step or a library sets it; take that out.",
            )


def _require_workspace() -> None:
    """CuBLAS reads its workspace's size once, when the GPU is first used."""
    if os.environ.get(WORKSPACE) == WORKSPACE_VALUE:
        return
    if torch.cuda.is_initialized():
        raise MachineError(
            "the GPU was used before the determinism switches were set",
            where=f"native-1: {WORKSPACE}",
            expected=WORKSPACE_VALUE,
            actual=os.environ.get(WORKSPACE, "not set"),
            advice=f"Set {WORKSPACE}={WORKSPACE_VALUE} in the environment of the step.",
        )
    os.environ[WORKSPACE] = WORKSPACE_VALUE


def set_threads(threads: int) -> None:
    """Compute with `threads` threads and one inter-operator thread."""
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # it may be set once only, and before any work
        torch.set_num_interop_threads(1)
