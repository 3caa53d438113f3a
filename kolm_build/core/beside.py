"""What every adapter beside a model's weights has: layers that it stands at, tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kolm_build.core.attached_files import TENSORS
from kolm_build.core.fields import Fields
from kolm_build.core.weight_names import Shape
from kolm_build.errors import InvalidRecordError

DTYPES = ("BF16", "F16", "F32")

Base = Mapping[str, Shape]
"""Name and shape of every tensor of the model."""


def layers_at(names: tuple[str, ...], base: Base) -> dict[str, tuple[int, int]]:
    """Path, outputs and inputs of each linear layer of the model whose last name is in `names`.

    Raises:
        InvalidRecordError: The model has no layer of one of the names.
    """
    layers = {
        path: shape
        for name, shape in base.items()
        for path, _, last in [name.rpartition(".")]
        if last == "weight" and path.rpartition(".")[2] in names
    }
    missing = set(names) - {path.rpartition(".")[2] for path in layers}
    if missing or any(len(shape) != 2 for shape in layers.values()):
        raise InvalidRecordError(
            "the adapter does not fit the model",
            where="target_modules",
            expected="names of its linear layers",
            actual=", ".join(sorted(missing)) or "a layer whose weight is no matrix",
        )
    return {path: (shape[0], shape[1]) for path, shape in layers.items()}


def layer_names(fields: Fields) -> tuple[str, ...]:
    """The last names of layers under ``target_modules``.

    Raises:
        InvalidRecordError: They are not sorted, or there is none.
    """
    names = fields.records("target_modules", _name)
    if not names or list(names) != sorted(set(names)):
        raise InvalidRecordError(
            "not sorted names of layers", where="target_modules", actual=repr(names)[:80]
        )
    return names


def _name(value: object) -> str:
    if type(value) is not str:
        raise InvalidRecordError("wrong type", expected="text", actual=repr(value)[:80])
    return value


def tensors_at(
    names: tuple[str, ...], base: Base, shapes: Callable[[int, int], Base]
) -> dict[str, Shape]:
    """Name and shape of every tensor beside the layers `names` of a model.

    Args:
        names: The last names of the layers.
        base: The model's tensors.
        shapes: The tensors beside a layer of so many inputs and outputs, by the parts' names.

    Raises:
        InvalidRecordError: The model has no layer of one of the names.
    """
    return {
        f"{path}.{part}": shape
        for path, (outputs, inputs) in layers_at(names, base).items()
        for part, shape in shapes(inputs, outputs).items()
    }


def check_tensors(wanted: Base, found: Mapping[str, tuple[str, Shape]]) -> None:
    """Refuse tensors `found`, given by dtype and shape, other than `wanted`.

    Raises:
        InvalidRecordError: One is missing, not wanted, or of another shape or dtype.
    """
    for name in sorted(wanted.keys() | found.keys()):
        (dtype, shape), want = found.get(name, ("none", ())), wanted.get(name)
        if shape != want or dtype not in DTYPES:
            raise InvalidRecordError(
                "the adapter does not fit the model",
                where=f"{TENSORS}: {name}",
                expected="no such tensor" if want is None else f"{list(want)}, of floats",
                actual=f"{dtype} {list(shape)}" if name in found else "missing",
            )


def positive(fields: Fields, name: str) -> int:
    """The integer above 0 under `name`."""
    value = fields.integer(name)
    if value < 1:
        raise InvalidRecordError("out of range", where=name, expected="above 0", actual=str(value))
    return value
