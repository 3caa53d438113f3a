"""What a lock of version 1 made of a recipe (spec/lock.md).

Recipes had no stages, sets or further models then: one set of rows, supervised fine-tuning with
LoRA and AdamW, one training after the other. Such a lock is checked and instantiated as it was, so
whatever was built from it is built again to the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from kolm_build.core import cbor
from kolm_build.core.derivation import Param
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.plain import plain
from kolm_build.core.sections import Data, Pipeline, Train

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "dataset": ("holdout", "report", "train"),
    "sft": ("adapter", "trace"),
}
"""The outputs of the steps that have others by now."""

_TRAINING = (
    *("adapter_dtype", "batch_size", "compute_dtype", "epochs", "gradient_accumulation"),
    *("learning_rate", "lora_alpha", "lora_dropout", "lora_r", "max_grad_norm", "max_length"),
    *("max_steps", "schedule", "target_modules", "warmup_steps", "weight_decay"),
)


def sections(pipeline: Pipeline | None, now: Mapping[str, Digest]) -> Mapping[str, Digest]:
    """The digests of a recipe's sections, as such a lock has them.

    Args:
        pipeline: The recipe's pipeline.
        now: The digests as they are now. What could not be said then keeps its own, which no such
            lock has.
    """
    if pipeline is None:
        return now
    then = dict(now) | {"data": _digest(_data(pipeline.data))}
    if pipeline.train and all(map(_is_known, enumerate(pipeline.train, 1))):
        then["train"] = _digest([_train(stage) for stage in pipeline.train])
    return then


def params(step: str, given: Mapping[str, Param]) -> Mapping[str, Param]:
    """The parameters that a derivation of `step` had, of those that it would have now."""
    if step == "dataset":
        return {name: value for name, value in given.items() if name != "schema"}
    return {name: given[name] for name in _TRAINING} if step == "sft" else given


def _digest(value: object) -> Digest:
    return Digest.of_record(cbor.encode(value), RecordKind.RECIPE)


def _data(data: Data) -> object:
    return {
        "origin": plain(data.origin),
        "format": data.format,
        "system": data.system,
        "group": data.group,
        **dict(data.parts),
    }


def _train(stage: Train) -> object:
    known = dict(stage.params)
    return {"algorithm": "sft", "params": [[name, known[name]] for name in _TRAINING]}


def _is_known(numbered: tuple[int, Train]) -> bool:
    """Whether the stage is one that a recipe of that time could have."""
    number, stage = numbered
    before = "base" if number == 1 else f"train-{number - 1}"
    return (
        stage.algorithm == "sft"
        and stage.rows == "dataset"
        and stage.name == f"train-{number}"
        and stage.models == (("model", before),)
        and not stage.checkpoints
        and _has_no_more(dict(stage.params))
    )


def _has_no_more(given: Mapping[str, Param]) -> bool:
    """Whether all parameters that are new since then have their defaults."""
    from kolm_build.core.stage_reader import default_params

    usual = dict(default_params("sft", adapter="lora", optimiser="adamw"))
    return {n: v for n, v in given.items() if n not in _TRAINING} == {
        n: v for n, v in usual.items() if n not in _TRAINING
    }
