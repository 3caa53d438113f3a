"""What a model's files say of a network that a `Decoder` computes, whoever does (GEN-51)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

from kolm_build.core.quantisation_config import KEY, LayerGroup, from_config
from kolm_build.runtime.decoder_config import DecoderConfig, read
from kolm_build.runtime.decoder_parts import Described, Given, IsSound, unfit, with_tied

T = TypeVar("T")

_NAMED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""The dtypes that config.json may name, and a network computes in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSettings:
    """A network as its files describe it.

    Attributes:
        config: What it is.
        layers: How the quantised layers are stored, by name.
        dtype: What it computes in, by its safetensors name.
    """

    config: DecoderConfig
    layers: Mapping[str, LayerGroup]
    dtype: str

    @classmethod
    def of(cls, settings: Mapping[str, object], dtypes: Iterable[str]) -> Self:
        """What `settings` say, and the tensors.

        Args:
            settings: What config.json says.
            dtypes: The dtype of each tensor, by its safetensors name, in the order of the file.

        Raises:
            InvalidRecordError: A setting or dtype is not one that a `Decoder` knows.
        """
        config = read({name: one for name, one in settings.items() if name != KEY})
        layers: Mapping[str, LayerGroup] = {}
        dtype = next(filter(_is_floating, dtypes), "F32")
        if KEY in settings:
            layers, dtype = from_config(settings[KEY]).by_layer(), _named_dtype(settings)
        if dtype not in _NAMED.values():
            raise unfit("dtype", dtype)
        return cls(config=config, layers=layers, dtype=dtype)

    def given(
        self, tensors: Mapping[str, T], *, described: Described[T], is_sound: IsSound[T]
    ) -> Given[T]:
        """The tensors of the file, each to be taken once.

        Args:
            tensors: By name, as they are in the file.
            described: Says dtype and shape of a tensor.
            is_sound: Whether a quantised layer may have a tensor.

        Raises:
            InvalidRecordError: A head that is the embedding is there, or the embedding is not.
        """
        return Given(
            with_tied(self.config, tensors),
            self.layers,
            self.dtype,
            described=described,
            is_sound=is_sound,
        )


def _is_floating(dtype: str) -> bool:
    return dtype in (*_NAMED.values(), "F64") or dtype.startswith("F8")


def _named_dtype(settings: Mapping[str, object]) -> str:
    """The dtype that config.json names: that of the model before it was quantised."""
    found = settings.get("dtype", settings.get("torch_dtype"))
    if not isinstance(found, str) or found not in _NAMED:
        raise unfit("dtype", found)
    return _NAMED[found]
