"""A LoRA adapter on disk: what its two files say, in PEFT's names (spec/sft.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.weights import map_weights

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

_FIXED: Mapping[str, object] = {
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}


def adapter_config(*, rank: int, alpha: int, tensors: Iterable[str]) -> dict[str, object]:
    """What adapter_config.json says: all that applying the adapter needs, and nothing else."""
    modules = sorted({module_of(name)[0].rpartition(".")[2] for name in tensors})
    return {**_FIXED, "r": rank, "lora_alpha": alpha, "target_modules": modules}


def module_of(name: str) -> tuple[str, str]:
    """The linear layer that the adapter's tensor `name` belongs to, and its side, A or B.

    Raises:
        InvalidRecordError: It is not a LoRA tensor.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise InvalidRecordError("not a LoRA tensor", where=name, expected="...lora_A.weight")
    return found["module"], found["side"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The low-rank changes of a model's linear layers.

    Attributes:
        rank: Number of columns of B and rows of A.
        alpha: The changes are B A, scaled by `alpha` over `rank`.
        pairs: Linear layer to its A and B.
    """

    rank: int
    alpha: int
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The adapter in `folder`.

        Raises:
            InvalidRecordError: A file is bad, or a layer has one half of its pair only.
        """
        rank, alpha = _read_config(folder / "adapter_config.json")
        sides: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in map_weights(folder / "adapter_model.safetensors").tensors.items():
            module, side = module_of(name)
            sides.setdefault(module, {})[side] = tensor
        pairs = {module: _pair(module, found, rank) for module, found in sorted(sides.items())}
        return cls(rank=rank, alpha=alpha, pairs=pairs)

    def delta(self, module: str) -> torch.Tensor:
        """The change of the layer `module`, float32."""
        down, up = self.pairs[module]
        return (up.float() @ down.float()) * (self.alpha / self.rank)


def _read_config(path: Path) -> tuple[int, int]:
    """The rank and alpha that the file `path` says."""
    try:
        fields = Fields(strict_json.loads(path.read_bytes()))
        for name, want in _FIXED.items():
            found = fields.take(name, type(want))
            if found != want:
                raise InvalidRecordError(
                    "another kind of adapter", where=name, expected=repr(want), actual=repr(found)
                )
        rank, alpha = fields.integer("r"), fields.integer("lora_alpha")
        fields.array("target_modules")
        fields.done()
    except InvalidRecordError as error:
        raise error.in_file(path.name) from None
    return rank, alpha


def _pair(
    module: str, sides: Mapping[str, torch.Tensor], rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    down, up = sides.get("A"), sides.get("B")
    if down is None or up is None or down.ndim != 2 or up.ndim != 2:
        raise InvalidRecordError("a layer needs two matrices, A and B", where=module)
    if down.shape[0] != rank or up.shape[1] != rank:
        raise InvalidRecordError(
            "the matrices do not have the adapter's rank",
            where=module,
            expected=str(rank),
            actual=f"A {tuple(down.shape)}, B {tuple(up.shape)}",
        )
    return down, up
