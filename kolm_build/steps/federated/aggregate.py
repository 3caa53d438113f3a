"""``federated-aggregate``: what the server makes of the sites' updates (FED-66 to FED-68).

Inputs come by the sites' names, so the order in which they answered is nowhere. Where updates are
sealed, their sum is all that can be seen of them here: it is taken modulo 2^64, and what is left of
the masks is taken away.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from kolm_build.core import strict_json
from kolm_build.core.decimals import parse_decimal
from kolm_build.core.federated.fixed_point import square_norm
from kolm_build.core.federated.keystream import WORD_BYTES
from kolm_build.core.federated.plan import FACTORING
from kolm_build.core.federated.privacy import spent
from kolm_build.core.federated.round import FILE, Round
from kolm_build.core.federated.sealed import (
    HEAD,
    KEYS,
    VECTOR,
    Head,
    Layout,
    Unsealing,
    size_of,
)
from kolm_build.core.fields import Fields
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError, RoundError
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, output_folder
from kolm_build.steps.federated._factoring import factored, stacked
from kolm_build.steps.federated._server import RULES, Sums, Turn
from kolm_build.steps.federated._tensors import (
    ADAPTER,
    CHANGE,
    UPDATE,
    AdapterFolder,
    Arrays,
    ServerState,
    check_same,
    layout_of,
    parts,
)
from kolm_build.steps.federated.seal import Vector, add, mask

ROLE = "site-"
"""Before a site's name in the role of its input."""


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write the new adapter, the server's state and a summary of the round."""
    Fields(request.params).done()
    record = Round.decode((input_folder(request, "round") / FILE).read_bytes())
    unsealing = Unsealing.decode((input_folder(request, "unsealing") / KEYS).read_bytes())
    _check_sites(request, record, unsealing)
    start = AdapterFolder.read(input_folder(request, "global"))
    state = ServerState.read(input_folder(request, "state"))
    if record.plan.method in FACTORING:
        made, remembered, norm = *_factor(request, record, unsealing, start), "0"
    else:
        made, remembered, norm = _average(request, record, unsealing, start, state)
    made.write(output_folder(request, "adapter"))
    after = ServerState(round=record.opening.number, arrays=remembered)
    after.write(output_folder(request, "state"))
    summary = summary_of(record, unsealing, norm)
    (output_folder(request, "summary") / "summary.json").write_bytes(strict_json.dumps(summary))
    events.log(f"round {record.opening.number}: {len(unsealing.survivors)} updates")


def _check_sites(request: StepRequest, record: Round, unsealing: Unsealing) -> None:
    """Refuse inputs of other sites than the survivors, and too few of them."""
    given = sorted(role.removeprefix(ROLE) for role in request.inputs if role.startswith(ROLE))
    if given != list(unsealing.survivors):
        raise InvalidRecordError(
            "updates of other sites than those that stayed",
            where="inputs",
            expected=", ".join(unsealing.survivors),
            actual=", ".join(given),
        )
    if len(given) < record.plan.threshold:
        raise RoundError(
            "too few sites stayed",
            where=f"round {record.opening.number}",
            expected=f"{record.plan.threshold} or more of {len(record.sites)}",
            actual=f"{len(given)}: " + ", ".join(given),
            advice="Open the round again, with a new nonce, when more sites can answer.",
        )


def _factor(
    request: StepRequest, record: Round, unsealing: Unsealing, start: AdapterFolder
) -> tuple[AdapterFolder, Arrays]:
    adapters = [
        AdapterFolder.read(input_folder(request, ROLE + name)) for name in unsealing.survivors
    ]
    for name, one in zip(unsealing.survivors, adapters, strict=True):
        check_same(
            layout_of(one.arrays), layout_of(start.arrays), file=ADAPTER, what=f"{name}'s update"
        )
    weights = [record.weight_of((name,)) for name in unsealing.survivors]
    if record.plan.method == "flora":
        return stacked(adapters, weights), {}
    return factored(adapters, weights, start), {}


def _average(
    request: StepRequest,
    record: Round,
    unsealing: Unsealing,
    start: AdapterFolder,
    state: ServerState,
) -> tuple[AdapterFolder, Arrays, str]:
    layout = layout_of_round(record, start.arrays)
    whole = unseal(read_vectors(request, record, unsealing, layout), record, unsealing)
    plan = record.plan
    everybody = record.weight_of([one.name for one in record.sites])
    means = _scaled(whole, record.weight_of(unsealing.survivors), plan.fraction_bits)
    shares = _scaled(whole, everybody, plan.fraction_bits)
    sums = Sums(
        mean=_kind(parts(layout, means), UPDATE),
        share=_kind(parts(layout, shares), UPDATE),
        control=_kind(parts(layout, shares), CHANGE),
    )
    turn = Turn(plan=plan, start=start.arrays, state=state, sums=sums)
    arrays, remembered = RULES[plan.method](turn)
    made = AdapterFolder(arrays=arrays, config=start.config)
    return made, remembered, _norm(whole, layout, record, unsealing)


def layout_of_round(record: Round, arrays: Arrays) -> Layout:
    """What each update of the round holds."""
    method = record.plan.method
    names = [name for name in arrays if method != "ffa-lora" or ".lora_B." in name]
    found = {UPDATE + name: arrays[name] for name in names}
    if method == "scaffold":
        found |= {CHANGE + name: arrays[name] for name in names}
    return layout_of(found)


def read_vectors(
    request: StepRequest, record: Round, unsealing: Unsealing, layout: Layout
) -> list[Vector]:
    """The survivors' sealed vectors.

    Raises:
        InvalidRecordError: One is of another round or site, or does not fit the adapter.
    """
    made = []
    for name in unsealing.survivors:
        folder = input_folder(request, ROLE + name)
        head = Head.decode((folder / HEAD).read_bytes())
        if (head.round, head.site) != (record.id, name):
            raise InvalidRecordError(
                "an update of another round or site",
                file=HEAD,
                where=ROLE + name,
                expected=f"{record.id} {name}",
                actual=f"{head.round} {head.site}",
            )
        check_same(head.layout, layout, file=HEAD, what=f"{name}'s update")
        data = (folder / VECTOR).read_bytes()
        if len(data) != WORD_BYTES * size_of(layout):
            raise InvalidRecordError("not as long as its layout", file=VECTOR, where=ROLE + name)
        made.append(np.frombuffer(data, "<u8").astype(np.uint64))
    return made


def unseal(vectors: list[Vector], record: Round, unsealing: Unsealing) -> Vector:
    """The sum modulo 2^64 without masks (FED-34).

    Raises:
        InvalidRecordError: The seeds are not those that the masks were made of.
    """
    whole = np.zeros(len(vectors[0]), dtype=np.uint64)
    for vector in vectors:
        whole = whole + vector
    _check_seeds(record, unsealing)
    for seed in unsealing.own.values():
        whole = whole - mask(seed, len(whole))
    for gone, seeds in unsealing.pairs.items():
        for survivor, seed in seeds.items():
            whole = add(whole, mask(seed, len(whole)), -record.sign_of(survivor, gone))
    return whole


def _check_seeds(record: Round, unsealing: Unsealing) -> None:
    stayed = set(unsealing.survivors)
    wanted = stayed if record.plan.masks else set()
    good = unsealing.own.keys() == wanted and not unsealing.pairs.keys() & stayed
    if not good or any(seeds.keys() != wanted for seeds in unsealing.pairs.values()):
        raise InvalidRecordError("seeds of other masks than those in the sum", file=KEYS)


def _scaled(whole: Vector, weight: int, bits: int) -> np.ndarray:
    """The sum as numbers, over `weight`: two operations, each rounded once."""
    return whole.view(np.int64).astype(np.float64) / np.float64(weight << bits)


def _kind(arrays: Arrays, kind: str) -> Arrays:
    return {name.removeprefix(kind): one for name, one in arrays.items() if name.startswith(kind)}


def _norm(whole: Vector, layout: Layout, record: Round, unsealing: Unsealing) -> str:
    """The norm of the mean update, rounded to 6 places, from whole numbers."""
    chosen = [
        one.reshape(-1)
        for name, one in parts(layout, whole.view(np.int64)).items()
        if name.startswith(UPDATE)
    ]
    square = Decimal(square_norm(np.concatenate(chosen).tolist()))
    weight = record.weight_of(unsealing.survivors) << record.plan.fraction_bits
    return f"{square.sqrt() / weight:.6f}"


def summary_of(record: Round, unsealing: Unsealing, norm: str) -> dict[str, object]:
    """What is told of a round; every figure follows from the step's inputs."""
    plan = record.plan
    value: dict[str, object] = {
        "version": 1,
        "round": record.opening.number,
        "id": str(record.id),
        "method": plan.method,
        "masks": plan.masks,
        "sites": {one.name: one.rows for one in record.sites},
        "survivors": list(unsealing.survivors),
        "update_norm": norm,
        "clip": plan.clip,
        "noise_multiplier": plan.noise_multiplier,
    }
    if plan.has_noise:
        loss = spent(
            rounds=record.opening.number,
            noise_multiplier=parse_decimal(plan.noise_multiplier),
            delta=parse_decimal(plan.delta),
        )
        value |= {"epsilon": f"{loss.epsilon:f}", "delta": plan.delta, "order": loss.order}
    return value
