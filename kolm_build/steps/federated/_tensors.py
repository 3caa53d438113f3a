"""Adapters and states as arrays, and as vectors of whole numbers (spec/algorithms-federated.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kolm_build.core import strict_json
from kolm_build.core.federated.sealed import Layout, size_of
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._weights import Weight, read_weights, to_bytes, write_weights

Arrays = Mapping[str, NDArray[Any]]

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CONTROL = "control.safetensors"
UPDATE = "update."
"""Before the names of an adapter's tensors in a vector; those of a control variate have CHANGE."""
CHANGE = "control."


def read_arrays(path: Path) -> dict[str, NDArray[np.float64]]:
    """The float32 tensors in the file `path`, as binary64; none where there is no file.

    Raises:
        InvalidRecordError: A tensor is of another type.
    """
    if not path.exists():
        return {}
    made = {}
    for weight in read_weights(path):
        if weight.dtype != "F32":
            raise InvalidRecordError(
                "not float32", file=path.name, where=weight.name, actual=weight.dtype
            )
        values = np.frombuffer(weight.read(), "<f4").astype(np.float64)
        made[weight.name] = values.reshape(weight.shape)
    return made


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write `arrays` as float32, each number rounded once; nothing where there are none."""
    if arrays:
        write_weights(path, [_weight(name, values) for name, values in arrays.items()])


def _weight(name: str, values: NDArray[Any]) -> Weight:
    def read() -> memoryview:
        with np.errstate(over="ignore"):  # an overflow is infinite, and refused as such
            return to_bytes(values.astype("<f4"), "F32")

    return Weight(name=name, dtype="F32", shape=values.shape, read=read)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder:
    """An adapter with what its configuration says.

    Attributes:
        arrays: Its tensors.
        config: The rest, as it stands in adapter_config.json.
    """

    arrays: Arrays
    config: Mapping[str, object]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The adapter in `folder`."""
        config = strict_json.loads((folder / CONFIG).read_bytes())
        if not isinstance(config, dict):
            raise InvalidRecordError("not an adapter's configuration", file=CONFIG)
        return cls(arrays=read_arrays(folder / ADAPTER), config=config)

    def write(self, folder: Path) -> None:
        """Write it to the empty `folder`."""
        write_arrays(folder / ADAPTER, self.arrays)
        (folder / CONFIG).write_bytes(strict_json.dumps(dict(self.config)))

    @property
    def rank(self) -> int:
        """Its rank."""
        return self._number("r")

    @property
    def alpha(self) -> int:
        """Its changes are scaled by this over its rank."""
        return self._number("lora_alpha")

    def _number(self, name: str) -> int:
        found = self.config.get(name)
        if type(found) is not int or found < 1:
            raise InvalidRecordError("not a number above 0", file=CONFIG, where=name)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the server remembers from one round to the next.

    Attributes:
        round: How many rounds there were.
        arrays: The moments or control variates of its method, float32; names begin with theirs.
    """

    round: int
    arrays: Arrays

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The state in `folder`."""
        fields = Fields(strict_json.loads((folder / "state.json").read_bytes()))
        fields.version(1)
        number = fields.integer("round")
        fields.done()
        return cls(round=number, arrays=read_arrays(folder / "state.safetensors"))

    def write(self, folder: Path) -> None:
        """Write it to the empty `folder`."""
        (folder / "state.json").write_bytes(strict_json.dumps({"version": 1, "round": self.round}))
        write_arrays(folder / "state.safetensors", self.arrays)

    def part(self, kind: str, like: Arrays, fill: float = 0.0) -> dict[str, NDArray[np.float64]]:
        """The tensors of one kind, by their adapter's names; `fill` in every place at first."""
        found = {
            name.removeprefix(f"{kind}."): values
            for name, values in self.arrays.items()
            if name.startswith(f"{kind}.")
        }
        return found or {name: np.full(one.shape, fill) for name, one in like.items()}


def named(kind: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """`arrays` with their kind before their names."""
    return {f"{kind}.{name}": values for name, values in arrays.items()}


def layout_of(arrays: Arrays) -> Layout:
    """Sorted names and shapes."""
    return tuple((name, arrays[name].shape) for name in sorted(arrays))


def parts(layout: Layout, vector: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The tensors of a vector."""
    made, at = {}, 0
    for name, shape in layout:
        size = size_of(((name, shape),))
        made[name] = vector[at : at + size].reshape(shape)
        at += size
    return made


def check_same(found: Layout, wanted: Layout, *, file: str, what: str) -> None:
    """Refuse other names or shapes than those of the round's adapter.

    Raises:
        InvalidRecordError: They differ; the error names the first.
    """
    if found == wanted:
        return
    here, there = dict(found), dict(wanted)
    name = min(one for one in here.keys() | there.keys() if here.get(one) != there.get(one))
    raise InvalidRecordError(
        f"{what} does not fit the adapter of the round",
        file=file,
        where=name,
        expected=str(there.get(name, "no such tensor")),
        actual=str(here.get(name, "no such tensor")),
    )
