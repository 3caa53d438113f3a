"""Claims and files that came from another party: believed only as far as they prove themselves."""

from __future__ import annotations

from collections.abc import Mapping

from kolm_build.attest.claims import opened
from kolm_build.attest.keys import PublicKey
from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.fields import Fields
from kolm_build.core.quorum import BUILT
from kolm_build.errors import InvalidRecordError, SignatureError, SubmissionError
from kolm_build.store.claims import StoredRealisation
from kolm_build.surfaces.federated.workshop import read_files
from kolm_build.surfaces.substituting import fact_of
from kolm_build.surfaces.trees import Files, digest_of


def read_claim(
    data: object, key: PublicKey, derivation: Derivation, output: str, who: str
) -> StoredRealisation:
    """The claim in `data`: by `key`, about this output of this derivation.

    Raises:
        SubmissionError: It is not.
    """
    try:
        claim = StoredRealisation.decode(data if type(data) is bytes else b"")
        if claim.envelope is None:
            raise SubmissionError("a claim that nobody signed", where=f"{who}: {output}")
        envelope, kind = opened(claim.envelope, fact_of(claim))
    except (InvalidRecordError, SignatureError) as error:
        raise SubmissionError(
            "not a claim", where=f"{who}: {output}", actual=error.reason
        ) from None
    signature = envelope.signatures[0]
    if signature.keyid != key.keyid or not key.verifies(signature.sig, envelope.signed):
        raise SubmissionError(
            "a claim by an unknown key",
            where=f"{who}: {output}",
            expected=f"keyid {key.keyid}",
            actual=f"keyid {signature.keyid}",
        )
    made = claim.realisation
    about = (kind, made.output, made.resolved, claim.derivation)
    if about != (BUILT, output, derivation.resolved_digest, derivation.digest):
        raise SubmissionError("a claim about something else", where=f"{who}: {output}")
    return claim


def read_tree(fields: Fields, name: str, content: Digest, who: str) -> Files:
    """The files under `name`, which must be the tree `content`.

    Raises:
        SubmissionError: They are another tree.
    """
    files = read_files(fields.table(name))
    if digest_of(files) != content:
        raise SubmissionError(
            "files that are not what was claimed",
            where=f"{who}: {name}",
            expected=str(content),
            actual=str(digest_of(files)),
        )
    return files


def read_bytes(fields: Fields, name: str) -> Mapping[str, bytes]:
    """A table of texts to bytes.

    Raises:
        InvalidRecordError: A value is something else.
    """
    table = fields.table(name)
    for key, value in table.items():
        if type(value) is not bytes:
            raise InvalidRecordError("not bytes", where=f"{name}.{key}")
    return table  # type: ignore[return-value]  # checked
