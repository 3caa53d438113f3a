"""Whether what a site handed in is what the round asked for (FED-62, FED-63).

Signatures are checked before this; here the derivations that they vouch for are compared with the
round: the base, the adapter, the plan, the chain from the rows that were counted to what crosses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kolm_build.core import strict_json
from kolm_build.core.derivation import ContentInput, Derivation, Param
from kolm_build.core.digest import Digest
from kolm_build.core.federated.plan import FACTORING, FederationPlan
from kolm_build.core.federated.round import Round
from kolm_build.core.fields import Fields
from kolm_build.core.numerics import PORTABLE
from kolm_build.errors import SubmissionError

UPDATE, SEAL = "federated-update", "federated-seal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a site handed in, its claims' signatures checked.

    Attributes:
        site: The site.
        update: The derivation of its training.
        seal: The derivation that made it ready to cross; None where the adapter itself crosses.
        contents: Output to the content that the site's claims name: ``update``, ``card``, and
            ``sealed`` where there is one.
        card: The bytes of card.json, whose tree is `contents["card"]`.
    """

    site: str
    update: Derivation
    seal: Derivation | None
    contents: Mapping[str, Digest]
    card: bytes


def update_params(plan: FederationPlan) -> dict[str, Param]:
    """The parameters of a site's training under `plan`."""
    mu = plan.mu if plan.method in ("fed-prox", "fed-dyn") else "0"
    return dict(plan.training) | {"method": plan.method, "mu": mu}


def check_submission(given: Submission, record: Round, round_content: Digest) -> None:
    """Refuse what is not what the round asked for.

    Args:
        given: What was handed in.
        record: The round.
        round_content: Content of the tree that holds the round's record.

    Raises:
        SubmissionError: The first thing that does not fit, with what was expected.
    """
    opening, plan = record.opening, record.plan
    _same(given, "step", UPDATE, given.update.step)
    inputs = _contents(given.update, given)
    _same(given, "base", opening.base, inputs.get("model"), "trained from another base")
    _same(given, "adapter", opening.adapter, inputs.get("global"), "began with another adapter")
    _same(given, "state", opening.state, inputs.get("state"), "used another state of the server")
    _same(given, "params", update_params(plan), dict(given.update.params), "trained otherwise")
    _same(given, "class", PORTABLE, given.update.numerics.cls)
    _check_rows(given, record)
    if plan.method in FACTORING:
        _same(given, "seal", None, given.seal)
    else:
        _check_seal(given, record, round_content)


def _check_rows(given: Submission, record: Round) -> None:
    fields = Fields(strict_json.loads(given.card))
    rows, said = fields.integer("rows"), record.site(given.site).rows
    _same(given, "rows", said, rows, "said to have another number of rows than it trained on")


def _check_seal(given: Submission, record: Round, round_content: Digest) -> None:
    if given.seal is None:
        raise SubmissionError("nothing that was sealed", where=given.site)
    _same(given, "step", SEAL, given.seal.step)
    _same(given, "site", {"site": given.site}, dict(given.seal.params), "sealed for another site")
    inputs, opening = _contents(given.seal, given), record.opening
    _same(given, "update", given.contents["update"], inputs.get("update"), "sealed another update")
    _same(given, "round", round_content, inputs.get("round"), "sealed for another round")
    _same(given, "adapter", opening.adapter, inputs.get("global"), "sealed against another adapter")


def _contents(derivation: Derivation, given: Submission) -> dict[str, Digest]:
    found = {role: one.content for role, one in derivation.inputs if isinstance(one, ContentInput)}
    if len(found) != len(derivation.inputs):
        raise SubmissionError("an input that is not given by content", where=given.site)
    return found


def _same(
    given: Submission, what: str, wanted: object, found: object, reason: str = "not as it must be"
) -> None:
    if wanted != found:
        raise SubmissionError(
            f"a site {reason}" if reason[:3] != "not" else f"an update is {reason}",
            where=f"{given.site}: {what}",
            expected=str(wanted),
            actual=str(found),
        )
