"""Requests of step protocol 1."""

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import StepRequest
from vectors._notation import noted


def vectors() -> dict[str, object]:
    request = StepRequest(
        step="sft",
        params={"epochs": 1, "learning_rate": "2e-4"},
        inputs={"model": "/kolm/in/model", "train": "/kolm/in/train"},
        outputs={"adapter": "/kolm/out/adapter", "trace": "/kolm/out/trace"},
        scratch="/build",
        numerics=Numerics(cls="native-1", seed=42, threads=2),
        events_fd=3,
    )
    value = {
        "v": 1,
        "step": request.step,
        "params": request.params,
        "inputs": request.inputs,
        "outputs": request.outputs,
        "scratch": request.scratch,
        "numerics": {"class": "native-1", "seed": 42, "threads": 2},
        "events_fd": request.events_fd,
    }
    return {"requests": [{"value": noted(value), "cbor": request.encode().hex()}]}
