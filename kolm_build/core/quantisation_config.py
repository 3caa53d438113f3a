"""``quantization_config`` of config.json, in compressed-tensors' words (spec/quantization.md).

A strict reader and the one writer: what is read is what would be written, so a setting that this
program does not know is refused and never ignored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kolm_build.core.config_keys import QUANTISED
from kolm_build.core.fields import Fields
from kolm_build.core.quantisation import (
    CHANNEL,
    FP8,
    GROUPS,
    INT4,
    INT4_ASYMMETRIC,
    INT8,
    MXFP4,
    NVFP4,
    Activations,
    Format,
    Grid,
)
from kolm_build.errors import InvalidRecordError

METHOD = "compressed-tensors"
VERSION = "0.20.0"
"""The release of compressed-tensors whose form this is; it stands in the file."""

STATUS = "compressed"
MIXED = "mixed-precision"
KEY = QUANTISED

Table = Mapping[str, object]

_NAME = re.compile(r"[a-z0-9_][A-Za-z0-9_.\-]{0,499}")  # a class, such as Linear, starts otherwise
_SCALE_DTYPES: Mapping[str, str] = {"mxfp4": "torch.uint8", "nvfp4": "torch.float8_e4m3fn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that are stored and computed alike.

    Attributes:
        layers: Their names, sorted.
        grid: What their weights are rounded to.
        form: How their weights are stored.
        activations: What happens to what they read.
    """

    layers: tuple[str, ...]
    grid: Grid
    form: Format
    activations: Activations = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedLayers:
    """Which layers of a model are quantised, and how.

    Attributes:
        groups: The layers, each in one group.
        kept: Linear layers and embeddings that are not quantised, sorted.
    """

    groups: tuple[LayerGroup, ...]
    kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [name for group in self.groups for name in group.layers] + list(self.kept)
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice or not self.groups or not all(group.layers for group in self.groups):
            raise InvalidRecordError(
                "every quantised layer must stand in one group",
                where=KEY,
                actual=", ".join(twice)[:200] or "a group without layers",
            )

    def by_layer(self) -> Mapping[str, LayerGroup]:
        """The group of each quantised layer, by the layer's name, sorted."""
        return dict(sorted((name, group) for group in self.groups for name in group.layers))


def grouped(
    layers: Iterable[tuple[str, Grid, Format, Activations]], *, kept: Sequence[str] = ()
) -> QuantisedLayers:
    """The layers in groups of those that are alike, in the order of their first names.

    Args:
        layers: Name, grid, storage and treatment of activations of each layer.
        kept: Linear layers and embeddings that stay as they are.

    Raises:
        InvalidRecordError: There are none, or a layer is named twice.
    """
    alike: dict[tuple[Grid, Format, Activations], list[str]] = {}
    for name, grid, form, activations in sorted(layers, key=lambda layer: layer[0]):
        alike.setdefault((grid, form, activations), []).append(name)
    groups = tuple(
        LayerGroup(layers=tuple(names), grid=grid, form=form, activations=activations)
        for (grid, form, activations), names in alike.items()
    )
    return QuantisedLayers(groups=groups, kept=tuple(sorted(kept)))


def to_config(layers: QuantisedLayers) -> dict[str, object]:
    """The value of ``quantization_config`` (QUANT-30)."""
    forms = {group.form for group in layers.groups}
    return {
        "config_groups": {
            f"group_{number}": _group(group) for number, group in enumerate(layers.groups)
        },
        "format": forms.pop() if len(forms) == 1 else MIXED,
        "global_compression_ratio": None,
        "ignore": list(layers.kept),
        "kv_cache_scheme": None,
        "quant_method": METHOD,
        "quantization_status": STATUS,
        "sparsity_config": {},
        "transform_config": {},
        "version": VERSION,
    }


def from_config(value: object) -> QuantisedLayers:
    """The layers that ``quantization_config`` names.

    Raises:
        InvalidRecordError: It is of another method, or says something that `to_config` never
            writes (QUANT-31).
    """
    try:
        layers = _read(value)
        _check_same(value, to_config(layers))
    except InvalidRecordError as error:
        raise error.under(KEY) from None
    return layers


def _group(group: LayerGroup) -> dict[str, object]:
    return {
        "format": group.form,
        "input_activations": _activations(group),
        "output_activations": None,
        "targets": list(group.layers),
        "weights": _weights(group.grid),
    }


def _weights(grid: Grid) -> dict[str, object]:
    table: dict[str, object] = {
        "dynamic": False,
        "group_size": None if grid.group == CHANNEL else grid.group,
        "num_bits": grid.bits,
        "strategy": _strategy(grid),
        "symmetric": grid.symmetric,
        "type": "int" if grid.kind == "int" else "float",
    }
    if grid.kind in _SCALE_DTYPES:
        table["scale_dtype"] = _SCALE_DTYPES[grid.kind]
    return table


def _strategy(grid: Grid) -> str:
    if grid.group == CHANNEL:
        return "channel"
    return "tensor_group" if grid.kind == "nvfp4" else "group"


def _activations(group: LayerGroup) -> dict[str, object] | None:
    if not group.activations:
        return None
    if group.grid.kind == "nvfp4":
        return {**_weights(group.grid), "dynamic": "local"}
    dynamic = group.activations == "dynamic"
    return {
        "dynamic": dynamic,
        "group_size": None,
        "num_bits": 8,
        "strategy": "token" if dynamic else "tensor",
        "symmetric": True,
        "type": "int",
    }


def _read(value: object) -> QuantisedLayers:
    fields = Fields(value)
    method = fields.text("quant_method")
    if method != METHOD:
        raise InvalidRecordError(
            "an unknown method of quantisation",
            where="quant_method",
            expected=repr(METHOD),
            actual=repr(method)[:80],
        )
    groups = tuple(
        _read_group(group, f"config_groups.{name}")
        for name, group in fields.table("config_groups").items()
    )
    return QuantisedLayers(groups=groups, kept=_names(fields, "ignore"))


def _read_group(value: object, where: str) -> LayerGroup:
    """The group that is written as `value`: one of the few there are, on the layers it names."""
    try:
        layers = _names(Fields(value), "targets")
        for grid, form, activations in known_groups():
            group = LayerGroup(layers=layers, grid=grid, form=form, activations=activations)
            if _group(group) == value:
                return group
    except InvalidRecordError as error:
        raise error.under(where) from None
    raise InvalidRecordError(
        "a form of quantisation that is not known",
        where=where,
        expected="one that the step `quantise` writes (spec/quantization.md)",
        actual=repr({key: one for key, one in dict(value).items() if key != "targets"})[:300],  # type: ignore[call-overload]  # a table: it was read as one
    )


def known_groups() -> Iterator[tuple[Grid, Format, Activations]]:
    """Everything that a group of layers may be (QUANT-31)."""
    for group in GROUPS:
        yield replace(INT4, group=group), "pack-quantized", ""
        yield replace(INT4, group=group), "pack-quantized", "dynamic"
        yield replace(INT4_ASYMMETRIC, group=group), "pack-quantized", ""
    yield INT8, "pack-quantized", ""
    yield INT8, "int-quantized", ""
    yield INT8, "int-quantized", "dynamic"
    yield INT8, "int-quantized", "static"
    yield FP8, "float-quantized", ""
    yield NVFP4, "nvfp4-pack-quantized", ""
    yield NVFP4, "nvfp4-pack-quantized", "static"
    yield MXFP4, "mxfp4-pack-quantized", ""


def _names(fields: Fields, key: str) -> tuple[str, ...]:
    """The names of layers under `key`: literal ones, sorted, no patterns and no classes."""
    names = tuple(fields.array(key))
    texts = tuple(name for name in names if isinstance(name, str) and _NAME.fullmatch(name))
    if texts != names or list(texts) != sorted(set(texts)):
        raise InvalidRecordError(
            "not a list of layers",
            where=key,
            expected="names of layers, sorted, each once",
            actual=repr(names)[:200],
        )
    return texts


def _check_same(value: object, written: Table) -> None:
    """Refuse a setting that differs from what would be written."""
    table = dict(value)  # type: ignore[call-overload]  # a table: it was read as one
    for key in sorted(table.keys() | written.keys()):
        if key not in table or key not in written or table[key] != written[key]:
            raise InvalidRecordError(
                "a setting of quantisation that is not known",
                where=key,
                expected=repr(written[key])[:80] if key in written else "no such setting",
                actual=repr(table[key])[:80] if key in table else "nothing",
            )
