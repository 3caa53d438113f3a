"""Writing an adapter: canonical tensors, a configuration without paths, the base's digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict

from kolm_build.core import strict_json
from kolm_build.runtime.weights import COMPUTE_DTYPES
from kolm_build.steps._adapter import CONFIG, TENSORS
from kolm_build.steps._base import PLAIN, Base, weights_id
from kolm_build.steps._tensors import weight_of
from kolm_build.steps._trace import diverged
from kolm_build.steps._weights import read_weights, write_weights


def adapter_state(network: Any, dtype: str) -> dict[str, torch.Tensor]:
    """The adapters' tensors in PEFT's names, as `dtype`, all finite.

    PEFT must not ask a hub whether the vocabulary grew.

    Raises:
        StepFailedError: A value is not a finite number.
    """
    found = get_peft_model_state_dict(network, save_embedding_layers=False)
    return finite({name: tensor.to(COMPUTE_DTYPES[dtype]) for name, tensor in found.items()})


def finite(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state`, of finite numbers.

    Raises:
        StepFailedError: A value is not a finite number.
    """
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise diverged(name, actual="NaN or an infinity")
    return state


def write_adapter(
    state: Mapping[str, torch.Tensor],
    config: Mapping[str, object],
    *,
    base: Path,
    out: Path,
    stored: str = PLAIN,
) -> None:
    """Write the three files of an adapter to the folder `out` (SFT-8, ADPT-1).

    Args:
        state: Its tensors, in PEFT's names.
        config: What adapter_config.json says.
        base: The folder of the model that it was trained on.
        out: Where to write.
        stored: How the base's adapted layers were stored.
    """
    weights = [weight_of(name, tensor) for name, tensor in state.items()]
    write_weights(out / TENSORS, weights)
    (out / CONFIG).write_bytes(strict_json.dumps(dict(config)))
    trained = weights_id(read_weights(base / "model.safetensors"))
    Base(weights=trained, stored=stored).write(out)
