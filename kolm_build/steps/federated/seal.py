"""``federated-seal``: an update made ready to cross (FED-20 to FED-24, FED-31, FED-42).

Difference to the round's adapter, in fixed point, shortened to the clip, times the site's weight,
plus noise and masks where the plan has them; all in whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kolm_build.core.federated.fixed_point import clipped, square_norm, to_fixed
from kolm_build.core.federated.gaussian import gaussian_noise
from kolm_build.core.federated.keystream import WORD_BYTES, keystream
from kolm_build.core.federated.round import FILE, Round
from kolm_build.core.federated.sealed import HEAD, SECRET, VECTOR, Head, Secret
from kolm_build.core.fields import Fields
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, output_folder
from kolm_build.steps.federated._tensors import (
    ADAPTER,
    CHANGE,
    CONTROL,
    UPDATE,
    Arrays,
    check_same,
    layout_of,
    read_arrays,
)

Vector = NDArray[np.uint64]


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write the sealed vector and its head."""
    fields = Fields(request.params)
    site = fields.text("site")
    fields.done()
    record = Round.decode((input_folder(request, "round") / FILE).read_bytes())
    secret = Secret.decode((input_folder(request, "secret") / SECRET).read_bytes())
    arrays = crossing(input_folder(request, "update"), input_folder(request, "global"), record)
    vector, was = fixed(arrays, record)
    sealed = seal(vector, record, site, secret)
    out = output_folder(request)
    head = Head(round=record.id, site=site, layout=layout_of(arrays))
    (out / HEAD).write_bytes(head.encode())
    (out / VECTOR).write_bytes(sealed.astype("<u8").tobytes())
    events.metric("norm", str(was))


def crossing(update: Path, before: Path, record: Round) -> Arrays:
    """What of an update goes into the vector: differences, and changes of a control variate.

    Raises:
        InvalidRecordError: Its tensors are not those of the round's adapter.
    """
    start, end = read_arrays(before / ADAPTER), read_arrays(update / ADAPTER)
    check_same(layout_of(end), layout_of(start), file=ADAPTER, what="an update")
    method = record.plan.method
    chosen = [name for name in start if method != "ffa-lora" or ".lora_B." in name]
    made = {UPDATE + name: end[name] - start[name] for name in chosen}
    if method == "scaffold":
        changes = read_arrays(update / CONTROL)
        check_same(layout_of(changes), layout_of(start), file=CONTROL, what="a control variate")
        made |= {CHANGE + name: values for name, values in changes.items()}
    return made


def fixed(arrays: Arrays, record: Round) -> tuple[list[int], str]:
    """The whole numbers, each kind shortened to the clip; and the update's norm before, in text."""
    plan, made, told = record.plan, [], ""
    for kind in (CHANGE, UPDATE):  # as sorted names have it
        chosen = [arrays[name].reshape(-1) for name in sorted(arrays) if name.startswith(kind)]
        if not chosen:
            continue
        values = to_fixed(np.concatenate(chosen).tolist(), plan.fraction_bits)
        made += clipped(values, plan.bound)
        told = f"{square_norm(values) ** 0.5 / (1 << plan.fraction_bits):.6f}"
    return made, told


def seal(vector: Sequence[int], record: Round, site: str, secret: Secret) -> Vector:
    """The vector times the weight, plus noise and masks, modulo 2^64.

    Raises:
        InvalidRecordError: The seeds are not those that the round needs.
    """
    _check(record, site, secret)
    weight = record.weight_of((site,))
    made = unsigned([weight * value for value in vector])
    if secret.noise is not None:
        drawn = gaussian_noise(secret.noise, count=len(vector), variance=record.plan.noise_variance)
        made = made + unsigned(drawn)
    if secret.own is not None:
        made = made + mask(secret.own, len(vector))
    for peer, seed in sorted(secret.pairs.items()):
        made = add(made, mask(seed, len(vector)), record.sign_of(site, peer))
    return made


def _check(record: Round, site: str, secret: Secret) -> None:
    others = {one.name for one in record.sites} - {record.site(site).name}
    if not secret.pairs.keys() <= others:
        raise InvalidRecordError("a mask for no site of this round", where="pairs")
    masked = secret.own is not None and bool(secret.pairs)
    bare = secret.own is None and not secret.pairs
    if not (masked if record.plan.masks else bare):
        raise InvalidRecordError("masks that are not as the plan says", where="masks")
    if (secret.noise is not None) != record.plan.has_noise:
        raise InvalidRecordError("noise that is not as the plan says", where="noise")


def unsigned(values: Sequence[int]) -> Vector:
    """`values`, each between -2^63 and 2^63, modulo 2^64."""
    return np.array(values, dtype=np.int64).view(np.uint64)


def mask(seed: bytes, count: int) -> Vector:
    """`count` numbers modulo 2^64 from the stream of `seed`."""
    return np.frombuffer(
        keystream(seed, purpose="mask", length=WORD_BYTES * count), dtype="<u8"
    ).astype(np.uint64)


def add(vector: Vector, other: Vector, sign: int) -> Vector:
    """`vector` plus or minus `other`, modulo 2^64."""
    return vector + other if sign > 0 else vector - other
