"""Requests of step protocol 1."""

from dataclasses import replace

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances, StepRequest
from tools.vectors._notation import noted

NATIVE = StepRequest(
    step="sft",
    params={"epochs": 1, "learning_rate": "2e-4"},
    inputs={"model": "/kolm/in/model", "train": "/kolm/in/train"},
    outputs={"adapter": "/kolm/out/adapter", "trace": "/kolm/out/trace"},
    scratch="/build",
    numerics=Numerics(cls="native-1", seed=42, threads=2),
    events_fd=3,
)
PORTABLE = replace(
    NATIVE,
    numerics=Numerics(cls="portable-1", seed=42),
    circumstances=Circumstances(kernels="/kolm/kernels.so", threads=2),
)


def vectors() -> dict[str, object]:
    value: dict[str, object] = {
        "v": 1,
        "step": NATIVE.step,
        "params": NATIVE.params,
        "inputs": NATIVE.inputs,
        "outputs": NATIVE.outputs,
        "scratch": NATIVE.scratch,
        "numerics": {"class": "native-1", "seed": 42, "threads": 2},
        "events_fd": NATIVE.events_fd,
    }
    portable = value | {
        "numerics": {"class": "portable-1", "seed": 42, "threads": 1},
        "circumstances": {"kernels": "/kolm/kernels.so", "threads": 2},
    }
    return {
        "requests": [
            {"value": noted(value), "cbor": NATIVE.encode().hex()},
            {"value": noted(portable), "cbor": PORTABLE.encode().hex()},
        ]
    }
