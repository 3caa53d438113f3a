"""An adapter on disk: what its files say, in PEFT's names (spec/sft.md, algorithms-adapters.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.weights import map_weights
from kolm_build.steps._adapter_kinds import (
    KINDS,
    LORA,
    Kind,
    Parts,
    Settings,
)
from kolm_build.steps._base import Base

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"


def adapter_config(
    *,
    rank: int,
    alpha: int,
    tensors: Iterable[str],
    use_dora: bool = False,
    use_rslora: bool = False,
) -> dict[str, object]:
    """What adapter_config.json says of a LoRA adapter: what applying it needs, and nothing else."""
    return config_of(
        LORA,
        {"lora_alpha": alpha, "r": rank, "use_dora": use_dora, "use_rslora": use_rslora},
        tensors,
    )


def config_of(kind: Kind, settings: Settings, tensors: Iterable[str]) -> dict[str, object]:
    """What adapter_config.json says of an adapter of `kind` with the tensors named `tensors`."""
    paths = {place(kind, name)[0] for name in tensors} - {""}
    modules = sorted({path.rpartition(".")[2] for path in paths})
    shown = {key: list(one) if isinstance(one, tuple) else one for key, one in settings.items()}
    return {**kind.fixed, **shown, "target_modules": modules}


def place(kind: Kind, name: str) -> tuple[str, str]:
    """The layer that an adapter's tensor `name` belongs to, empty for all, and its part.

    Raises:
        InvalidRecordError: An adapter of `kind` has no such tensor.
    """
    found = kind.name.fullmatch(name)
    if found is None:
        raise InvalidRecordError(f"not a tensor of a {kind.fixed['peft_type']} adapter", where=name)
    groups = found.groupdict()
    return groups["module"] or "", groups["part"] or groups["shared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The changes of a model's linear layers.

    Attributes:
        kind: What sort of change it is.
        settings: What its configuration says.
        layers: Linear layer to its parts.
        base: What it was trained on, where its folder says so.
    """

    kind: Kind
    settings: Settings
    layers: Mapping[str, Parts]
    base: Base | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The adapter in `folder`.

        Raises:
            InvalidRecordError: A file is bad, or a layer lacks a part.
        """
        kind, settings = _read_config(folder / CONFIG)
        layers: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in map_weights(folder / TENSORS).tensors.items():
            module, part = place(kind, name)
            layers.setdefault(module, {})[part] = tensor
        shared = layers.pop("", {})
        complete = {module: shared | parts for module, parts in sorted(layers.items())}
        for module, parts in complete.items():
            _check_parts(module, parts, kind.parts(settings, parts))
            kind.shape(module, parts, settings)
        return cls(kind=kind, settings=settings, layers=complete, base=Base.read(folder))

    def shape(self, module: str) -> tuple[int, ...]:
        """The shape of the matrix that the layer `module` must have; -1 where any size will do."""
        return self.kind.shape(module, self.layers[module], self.settings)

    def weight(self, module: str, base: torch.Tensor) -> torch.Tensor:
        """The matrix of the layer `module`, of the base's, both float32."""
        return self.kind.weight(base, self._parts(module), self.settings)

    def bias(self, module: str, base: torch.Tensor) -> torch.Tensor:
        """The bias of the layer `module`, of the base's, both float32."""
        scale = self._parts(module)[self.kind.scales_bias]
        return base * scale.reshape(-1) if scale.shape[-1] == 1 else base

    def _parts(self, module: str) -> Parts:
        return {part: tensor.float() for part, tensor in self.layers[module].items()}


def _read_config(path: Path) -> tuple[Kind, Settings]:
    """The kind and the settings that the file `path` says."""
    try:
        fields = Fields(strict_json.loads(path.read_bytes()))
        name = fields.text("peft_type")
        if name not in KINDS:
            raise InvalidRecordError(
                "another kind of adapter",
                where="peft_type",
                expected=" or ".join(KINDS),
                actual=repr(name),
            )
        kind = KINDS[name]
        _check_fixed(fields, kind)
        settings = {key: _setting(fields, key, kind.settings[key]) for key in kind.settings}
        fields.done()
    except InvalidRecordError as error:
        raise error.in_file(path.name) from None
    return kind, settings


def _check_fixed(fields: Fields, kind: Kind) -> None:
    for name, want in kind.fixed.items():
        if name == "peft_type":
            continue  # it chose the kind
        found = fields.take(name, type(want))
        if found != want:
            raise InvalidRecordError(
                "another kind of adapter", where=name, expected=repr(want), actual=repr(found)
            )


def _setting(fields: Fields, name: str, kind: type) -> int | bool | tuple[str, ...]:
    if kind is tuple:
        return tuple(str(one) for one in fields.array(name))
    if kind is bool:
        return fields.flag(name)
    value = fields.integer(name)
    if value < 0 or (value == 0 and name != "projection_prng_key"):
        raise InvalidRecordError("out of range", where=name, expected="above 0", actual=str(value))
    return value


def _check_parts(module: str, parts: Parts, wanted: frozenset[str]) -> None:
    if parts.keys() != wanted:
        raise InvalidRecordError(
            "a layer lacks a part",
            where=module,
            expected=", ".join(sorted(wanted)),
            actual=", ".join(sorted(parts)),
        )
