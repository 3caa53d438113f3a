"""The manifest: what an artifact holds and claims (spec/artifact.md).

It names every body member with its digests; its own SHA-256 is the artifact's id. Every claim in
it follows from the members, and the verifier recomputes it. Standard library only: the BLAKE3
digests are text here, checked where the package is built or imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from typing import Self

from kolm_build.core import strict_json
from kolm_build.core.archive import ATTESTATIONS, MANIFEST, Member, order
from kolm_build.core.decimals import CONTEXT, four_places
from kolm_build.core.fields import Fields
from kolm_build.core.kscore import TERMS, KScore
from kolm_build.core.name import parse_label
from kolm_build.errors import InvalidRecordError, UnsupportedVersionError

FORMAT = "kolm-artifact/1"
QUANTISED_FORMAT = "kolm-artifact/2"
"""That of a quantised model: a program that knows the first alone cannot check one."""
ATTACHED_FORMAT = "kolm-artifact/3"
"""That of a model with an adapter beside its weights: without it the model is another one."""

FORMATS = (FORMAT, QUANTISED_FORMAT, ATTACHED_FORMAT)

MAX_BYTES = 1 << 25

_DIGEST = re.compile("(b3|sha256):[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestMember:
    """A body member.

    Attributes:
        path: Its path.
        size: Its number of bytes.
        sha256: Their SHA-256, ``sha256:<hex>``.
        b3: Their BLAKE3, ``b3:<hex>``.
        crc32: Their CRC-32: the container's headers must say the same.
    """

    path: str
    size: int
    sha256: str
    b3: str
    crc32: int

    @property
    def member(self) -> Member:
        """The member as the container sees it."""
        return Member(path=self.path, size=self.size, crc32=self.crc32)

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "path": self.path,
            "size": self.size,
            "sha256": self.sha256,
            "b3": self.b3,
            "crc32": self.crc32,
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            path=fields.parsed("path", _body_path),
            size=fields.integer("size"),
            sha256=_digest(fields, "sha256"),
            b3=_digest(fields, "b3"),
            crc32=fields.integer("crc32"),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """What a manifest says of a quantised model.

    Attributes:
        scheme: What the weights became, such as ``w4a16``.
        method: How, such as ``gptq``.
        bits_per_weight: Bits stored for each parameter, all tensors together; decimal text.
        full_kscore: K and its terms of the model in full precision, as `Manifest.kscore`.
    """

    scheme: str
    method: str
    bits_per_weight: str
    full_kscore: Mapping[str, str]

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "scheme": self.scheme,
            "method": self.method,
            "bits_per_weight": self.bits_per_weight,
            "full_kscore": dict(self.full_kscore),
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            scheme=fields.text("scheme"),
            method=fields.text("method"),
            bits_per_weight=fields.text("bits_per_weight"),
            full_kscore=fields.record("full_kscore", _texts),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterClaim:
    """What a manifest says of an adapter beside a model's weights.

    Attributes:
        kind: What sort it is, as in ``model/adapter_config.json``: ``peft_type``.
        parameters: How many numbers it has; they are among the model's.
        base: The weights id of the weights that it was trained on, ``b3:<hex>``: those of
            ``model/model.safetensors``.
    """

    kind: str
    parameters: int
    base: str

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {"kind": self.kind, "parameters": self.parameters, "base": self.base}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            kind=fields.text("kind"),
            parameters=fields.integer("parameters"),
            base=_digest(fields, "base", "b3"),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact holds and claims.

    Attributes:
        name: The model's name.
        members: The body members, in the order of the container.
        weights_id: The weights id of the model, ``b3:<hex>`` (spec/safetensors.md).
        numerics: The numerics class of the recipe, as in the lock.
        licence: The licence of the base weights, as in the lock.
        kscore: K and its terms as decimal text, as in ``eval/kscore.json``.
        quantisation: How the model was quantised; None where it was not.
        adapter: The adapter beside its weights; None where there is none.

    Raises:
        InvalidRecordError: Members are out of order or repeated, or a quantised model has an
            adapter.
    """

    name: str
    members: tuple[ManifestMember, ...]
    weights_id: str
    numerics: str
    licence: str
    kscore: Mapping[str, str]
    quantisation: Quantisation | None = None
    adapter: AdapterClaim | None = None

    def __post_init__(self) -> None:
        keys = [order(member.path) for member in self.members]
        if keys != sorted(set(keys)):
            raise InvalidRecordError("members out of order or repeated", where="members")
        if self.quantisation is not None and self.adapter is not None:
            raise InvalidRecordError("a quantised model with an adapter", where="adapter")

    @property
    def format(self) -> str:
        """The format, which says what a reader must understand."""
        if self.adapter is not None:
            return ATTACHED_FORMAT
        return FORMAT if self.quantisation is None else QUANTISED_FORMAT

    def member(self, path: str) -> ManifestMember | None:
        """The body member at `path`, or None."""
        return next((member for member in self.members if member.path == path), None)

    def encode(self) -> bytes:
        """The bytes of ``manifest.json``: canonical JSON."""
        quantised, adapter = self.quantisation, self.adapter
        return strict_json.dumps(
            {
                "format": self.format,
                "name": self.name,
                "members": [member.to_value() for member in self.members],
                "weights_id": self.weights_id,
                "numerics": self.numerics,
                "licence": self.licence,
                "kscore": dict(self.kscore),
                "gate": "passed",
                **({} if quantised is None else {"quantisation": quantised.to_value()}),
                **({} if adapter is None else {"adapter": adapter.to_value()}),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict.

        Raises:
            UnsupportedVersionError: It is of another format.
            InvalidRecordError: `data` is not what `encode` writes for some manifest.
        """
        if len(data) > MAX_BYTES:
            raise InvalidRecordError("a manifest is too large", actual=f"{len(data)} bytes")
        fields = Fields(strict_json.loads(data))
        form = fields.text("format")
        _check_format(form)
        made = cls(
            name=fields.parsed("name", parse_label),
            members=fields.records("members", ManifestMember.from_value),
            weights_id=_digest(fields, "weights_id", "b3"),
            numerics=fields.text("numerics"),
            licence=fields.text("licence"),
            kscore=fields.record("kscore", _texts),
            quantisation=(
                fields.record("quantisation", Quantisation.from_value)
                if form == QUANTISED_FORMAT
                else None
            ),
            adapter=(
                fields.record("adapter", AdapterClaim.from_value)
                if form == ATTACHED_FORMAT
                else None
            ),
        )
        fields.text("gate")
        fields.done()
        if made.encode() != data:
            raise InvalidRecordError("a manifest that is not canonical JSON, or not passed")
        return made


def kscore_summary(score: KScore) -> dict[str, str]:
    """What a manifest says of `score`: K and its terms."""
    return {"k": str(score.k), **{name: str(getattr(score, name)) for name in TERMS}}


def bits_per_weight(tensor_bytes: int, parameters: int) -> str:
    """Bits that a parameter takes on the mean, scales and all: decimal text with four places.

    Raises:
        InvalidRecordError: There are no parameters.
    """
    if parameters < 1:
        raise InvalidRecordError("a model without weights", where="parameters")
    return str(four_places(CONTEXT.divide(Decimal(8 * tensor_bytes), Decimal(parameters))))


def artifact_id(manifest: bytes) -> str:
    """The id of the artifact whose ``manifest.json`` has these bytes."""
    return f"sha256:{sha256(manifest).hexdigest()}"


def _check_format(found: str) -> None:
    if found not in FORMATS:
        known = " or ".join(FORMATS)
        raise UnsupportedVersionError(
            "another format", where="format", expected=known, actual=repr(found)[:80]
        )


def _body_path(text: str) -> str:
    if text == MANIFEST or text.startswith(ATTESTATIONS):
        raise InvalidRecordError("not a body member", actual=text)
    return text  # the container, whose members are the same, has parsed it


def _digest(fields: Fields, name: str, prefix: str | None = None) -> str:
    """The digest under `name`, whose text form begins with `prefix`, by default the name."""
    text = fields.text(name)
    wanted = prefix or name
    if not _DIGEST.fullmatch(text) or not text.startswith(wanted + ":"):
        raise InvalidRecordError(
            "not a digest",
            where=name,
            expected=f"{wanted}: and 64 lower-case hex digits",
            actual=ascii(text)[:90],
        )
    return text


def _texts(value: object) -> Mapping[str, str]:
    fields = Fields(value)
    names = list(value) if isinstance(value, Mapping) else []
    return {name: fields.text(name) for name in names}
