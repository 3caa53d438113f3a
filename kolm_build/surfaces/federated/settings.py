"""What a site is told once: its name, whom it knows, how it judges (site.toml)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kolm_build.attest.keys import PublicKey
from kolm_build.core.bounded import Params, params
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_label
from kolm_build.core.toml import read_toml
from kolm_build.errors import InvalidRecordError

FILE = "site.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """What a site is told.

    Attributes:
        name: Its name.
        aggregator: The key of the aggregator whose rounds it joins.
        peers: The keys of all sites of the federation, its own too, by name.
        evaluate: How it judges a model on its own held-out rows.
    """

    name: str
    aggregator: PublicKey
    peers: Mapping[str, PublicKey]
    evaluate: Params

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The settings in `folder`.

        Raises:
            InvalidRecordError: They are not as described.
        """
        try:
            fields = Fields(read_toml((folder / FILE).read_text("utf-8")))
            fields.version(1)
            made = cls(
                name=fields.parsed("name", parse_label),
                aggregator=fields.parsed("aggregator", PublicKey.parse),
                peers=fields.record("peers", _peers),
                evaluate=params(fields, "evaluate"),
            )
            fields.done()
        except InvalidRecordError as error:
            raise error.in_file(str(folder / FILE)) from None
        return made


def _peers(value: object) -> Mapping[str, PublicKey]:
    fields = Fields(value)
    assert isinstance(value, Mapping), "Fields has checked it"
    return {parse_label(name): fields.parsed(name, PublicKey.parse) for name in sorted(value)}
