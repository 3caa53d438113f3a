"""The numerics class `native-1`: stock kernels, every determinism switch set (spec/native-1.md).

The bits belong to one kind of machine, one build of torch and one number of threads; all three
are in the derivation.
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from kolm_build.core.numerics import CUBLAS_WORKSPACE, NATIVE, Numerics
from kolm_build.errors import InvalidRecordError, MachineError

MAX_SEED = (1 << 32) - 1
"""NumPy's generator takes no larger one."""

WORKSPACE, WORKSPACE_VALUE = CUBLAS_WORKSPACE


def apply(numerics: Numerics) -> None:
    """Make this process compute as `numerics` says: switches, threads and seeds.

    Raises:
        InvalidRecordError: It is another class, or the seed is too large.
        MachineError: There is a GPU, and the environment leaves cuBLAS's workspace open.
    """
    if numerics.cls != NATIVE:
        raise InvalidRecordError(
            "another numerics class",
            where="numerics.class",
            expected=NATIVE,
            actual=numerics.cls,
        )
    set_switches()
    check_switches()
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

    Not cuBLAS's workspace: that is the environment's, which the engine makes, and
    `check_switches` looks at.
    """
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
        **(attention | {WORKSPACE: _workspace()} if torch.cuda.is_available() else {}),
    }


EXPECTED_SWITCHES: dict[str, bool | str] = {
    "deterministic_algorithms": True, "float32_matmul_precision": "highest",
    "matmul_tf32": False, "matmul_fp16_reduction": False, "matmul_bf16_reduction": False,
    "cudnn_tf32": False, "cudnn_benchmark": False, "cudnn_deterministic": True,
    "sdp_flash": False, "sdp_mem_efficient": False, "sdp_cudnn": False, "sdp_math": True,
    WORKSPACE: WORKSPACE_VALUE,
}  # fmt: skip
"""What `set_switches` leaves behind; attention and the workspace only where there is a GPU."""


def _workspace() -> str:
    """The size of cuBLAS's workspaces that this process was started with, or ``not set``."""
    return os.environ.get(WORKSPACE, "not set")


def check_switches() -> None:
    """Refuse a process in which something has turned a switch back.

    Raises:
        MachineError: Names the first switch that is not as `set_switches` left it.
    """
    for name, found in switches().items():
        if found != EXPECTED_SWITCHES[name]:
            raise MachineError(
                "a determinism switch is not as native-1 needs it",
                where=f"native-1: {name}",
                expected=str(EXPECTED_SWITCHES[name]),
                actual=str(found),
                advice=_advice(name),
            )


def _advice(name: str) -> str:
    if name == WORKSPACE:
        return f"Start the process with {WORKSPACE}={WORKSPACE_VALUE}, as the engine does."
    return "Something in the step or a library sets it; take that out."


def set_threads(threads: int) -> None:
    """Compute with `threads` threads and one inter-operator thread."""
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # it may be set once only, and before any work
        torch.set_num_interop_threads(1)
