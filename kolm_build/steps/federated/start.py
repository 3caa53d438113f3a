"""``federated-start``: the adapter that a federation starts from (FED-60).

A is uniform within 1/sqrt(columns), as PEFT draws it, from a stream of the seed and the tensor's
name; B is zero, so the adapter changes nothing yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from kolm_build.core.fields import Fields
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._adapter import adapter_config
from kolm_build.steps._bounds import count
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, output_folder
from kolm_build.steps._weights import Weight, read_weights
from kolm_build.steps.federated._tensors import AdapterFolder, ServerState

ALL_LINEAR = "all-linear"
CONTEXT = "kolm_build 2026 federated start v1"


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write the adapter, and a server's state that remembers nothing."""
    fields = Fields(request.params)
    rank, alpha = count(fields, "lora_r", 16), count(fields, "lora_alpha", 32)
    seed = count(fields, "seed", 0, least=0)
    names = fields.text("target_modules", default=ALL_LINEAR)
    fields.done()
    weights = read_weights(input_folder(request, "model") / "model.safetensors")
    arrays: dict[str, NDArray[np.float64]] = {}
    for weight in _chosen(weights, names.split(",")):
        rows, columns = weight.shape
        place = f"base_model.model.{weight.name.removesuffix('.weight')}"
        name = f"{place}.lora_A.weight"
        arrays[name] = uniform(f"{seed} {name}", (rank, columns)) / np.sqrt(np.float64(columns))
        arrays[f"{place}.lora_B.weight"] = np.zeros((rows, rank))
    config = adapter_config(rank=rank, alpha=alpha, tensors=arrays)
    AdapterFolder(arrays=arrays, config=config).write(output_folder(request, "adapter"))
    ServerState(round=0, arrays={}).write(output_folder(request, "state"))
    events.log(f"{len(arrays) // 2} layers of rank {rank}")


def uniform(text: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Numbers from -1 to 1 of 24 bits each, from the stream of `text`."""
    size = shape[0] * shape[1]
    stream = blake3(text.encode(), derive_key_context=CONTEXT).digest(length=4 * size)
    draws = (np.frombuffer(stream, "<u4") >> np.uint32(8)).astype(np.float64)
    return ((draws + 0.5) / 2.0**23 - 1.0).reshape(shape)


def _chosen(weights: Sequence[Weight], names: Sequence[str]) -> Iterator[Weight]:
    """The matrices of the layers that `names` mean.

    Raises:
        InvalidRecordError: A name means none.
    """
    layers = {
        one.name.removesuffix(".weight").rpartition(".")[2]: one
        for one in weights
        if len(one.shape) == 2 and ".layers." in one.name
    }
    for name in names:
        if name not in layers and list(names) != [ALL_LINEAR]:
            raise InvalidRecordError(
                "the model has no such linear layer",
                where="target_modules",
                expected=", ".join(sorted(layers)),
                actual=repr(name),
            )
    wanted = layers if list(names) == [ALL_LINEAR] else names
    for one in weights:
        if len(one.shape) == 2 and ".layers." in one.name and _last(one) in wanted:
            yield one


def _last(weight: Weight) -> str:
    return weight.name.removesuffix(".weight").rpartition(".")[2]
