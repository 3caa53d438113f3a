"""Which weights an adapter was trained on: the file base.json beside it (ADPT-1, ADPT-2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from blake3 import blake3

from kolm_build.core import strict_json
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.fields import Fields
from kolm_build.core.safetensors import weights_record
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._weights import Weight

FILE = "base.json"
PLAIN = "plain"
NF4 = "nf4-64"
STORED = (NF4, PLAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The weights that an adapter belongs to.

    Attributes:
        weights: Their weights id.
        stored: ``plain``, or ``nf4-64`` where the adapted layers were rounded to NF4 first.
    """

    weights: Digest
    stored: str = PLAIN

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What base.json in `folder` says; None where there is no such file.

        Raises:
            InvalidRecordError: It is not such a file.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            fields = Fields(strict_json.loads(path.read_bytes()))
            base = cls(weights=fields.parsed("weights", Digest.parse), stored=fields.text("stored"))
            fields.done()
            if base.stored not in STORED:
                raise InvalidRecordError(
                    "unknown value",
                    where="stored",
                    expected=" or ".join(STORED),
                    actual=repr(base.stored),
                )
        except InvalidRecordError as error:
            raise error.in_file(FILE) from None
        return base

    def write(self, folder: Path) -> None:
        """Write base.json."""
        value = {"stored": self.stored, "weights": str(self.weights)}
        (folder / FILE).write_bytes(strict_json.dumps(value))

    def check(self, weights: Iterable[Weight]) -> None:
        """Refuse other weights.

        Raises:
            InvalidRecordError: `weights` are not those that the adapter was trained on.
        """
        found = weights_id(weights)
        if found != self.weights:
            raise InvalidRecordError(
                "the adapter was trained on other weights",
                file=FILE,
                where="weights",
                expected=str(self.weights),
                actual=str(found),
                advice="Merge it into the model that its stage trained.",
            )


def weights_id(weights: Iterable[Weight]) -> Digest:
    """The weights id of a model: names, dtypes, shapes and bytes, in any order."""
    rows = ((one.name, one.dtype, one.shape, blake3(one.read()).digest()) for one in weights)
    return Digest.of_record(weights_record(rows), RecordKind.WEIGHTS)
