"""A stage of a recipe that trains by gradients: an objective, an adapter, an optimiser, one run.

TRL's trainer runs the loop and PEFT makes the adapters; rows reach the trainer as tokens that the
runtime made, and every file is written here (spec/algorithms.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import SFTConfig

from kolm_build.core.fields import Fields
from kolm_build.core.numerics import Numerics
from kolm_build.core.request import StepRequest
from kolm_build.core.trace import Trace
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics import native
from kolm_build.numerics.apply import applied_as
from kolm_build.numerics.state import payload
from kolm_build.runtime.loading import Model, load
from kolm_build.steps._bounds import count
from kolm_build.steps._checkpoint import OBJECTIVE, Checkpoint, StopAfter, state_of
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, output_folder
from kolm_build.steps._given import Given
from kolm_build.steps._metrics import Metrics, MetricsCallback
from kolm_build.steps._objective import Objective, ObjectiveTrainer
from kolm_build.steps._pinned import SFT_INERT, SFT_PINNED
from kolm_build.steps._sequences import Tokeniser
from kolm_build.steps._settings import settings_of
from kolm_build.steps._trace import TraceCallback
from kolm_build.steps._trainer import AnswerTrainer
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps._without_adapter import plain_model
from kolm_build.steps.adapters._change import Change
from kolm_build.steps.adapters.table import ADAPTERS
from kolm_build.steps.optimisers._optimiser import Optimiser
from kolm_build.steps.optimisers.table import OPTIMISERS

Params = dict[str, str | int]
Take = Callable[[Fields], Objective[Any, Any]]
"""Reads an objective's own parameters."""

CHECKPOINT = "checkpoint"
"""The output of a training that is stopped, and the input of the one that goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a stage is asked to do.

    Attributes:
        training: The parameters of any training.
        change: What may change.
        optimiser: How it changes.
        objective: What is minimised.
        stop_after: The step after which a checkpoint is made instead of a result; 0 for none.
    """

    training: TrainingParams
    change: Change
    optimiser: Optimiser
    objective: Objective[Any, Any]
    stop_after: int = 0

    @classmethod
    def parse(cls, params: Any, take: Take) -> Stage:
        """The stage that a derivation's `params` describe.

        Raises:
            InvalidRecordError: A key is unknown, or a value out of range or of another type.
        """
        fields = Fields(params)
        stage = cls(
            training=TrainingParams.take(fields),
            change=_named(fields, "adapter", "lora", ADAPTERS)(fields),
            optimiser=_named(fields, "optimiser", "adamw", OPTIMISERS)(fields),
            objective=take(fields),
            stop_after=count(fields, "stop_after", 0, least=0),
        )
        fields.done()
        stage.check()
        return stage

    def check(self) -> None:
        """Refuse to put a training aside while its completions are to be used again (RL-31)."""
        if self.stop_after % self.objective.repeats:
            raise InvalidRecordError(
                "a training cannot be put aside between steps with the same completions",
                where="stop_after",
                expected=f"a multiple of {self.objective.repeats}, the iterations",
                actual=str(self.stop_after),
                advice="Make checkpoint_steps a multiple of iterations.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a training made.

    Attributes:
        network: The network with what was trained.
        trace: What every step left.
        metrics: The table of its figures.
        checkpoint: Where it stands, where it was stopped.
    """

    network: Any
    trace: Trace
    metrics: Metrics
    checkpoint: Checkpoint | None


def stage_main(argv: list[str], take: Take) -> int:
    """The exit status of the step that trains with the objective that `take` reads."""

    def run(request: StepRequest, events: Events) -> None:
        run_stage(request, events, take)

    return run_step(argv, run, within=applied_as)


def run_stage(request: StepRequest, events: Events, take: Take) -> None:
    """Train, and write what was trained, the trace and the metrics."""
    stage = Stage.parse(request.params, take)
    out = output_folder(request, CHECKPOINT if stage.stop_after else stage.change.output)
    training = train(request, events, stage)
    if training.checkpoint is not None:
        training.checkpoint.write(out)
        return
    stage.change.write(training.network, base=input_folder(request, "model"), out=out)
    stage.objective.write(training.network, out)
    for name, data in training.trace.files().items():
        (output_folder(request, "trace") / name).write_bytes(data)
    (output_folder(request, "metrics") / "metrics.csv").write_bytes(training.metrics.csv())


def train(
    request: StepRequest, events: Events, stage: Stage, watchers: Sequence[TrainerCallback] = ()
) -> Training:
    """Train as `stage` says, its arithmetic applied already; nothing is written.

    Args:
        request: The step's request.
        events: Takes the progress.
        stage: What to do.
        watchers: Told of every step before the trace is; they may end the training early.
    """
    dtype, base = stage.change.load_dtype(stage.training), plain_model(request)
    stage.change.look(base)
    model = load(base, dtype=dtype)
    tokens = Tokeniser(model=model, max_length=stage.training.max_length)
    given = Given(request=request, model=model, tokens=tokens, change=stage.change, events=events)
    examples = stage.objective.examples(given)
    stage.change.receive(request)
    before = _checkpoint(request)
    trace = TraceCallback(
        request, stage.objective.columns(examples), events, None if before is None else before.trace
    )
    trainer = make_trainer(
        stage, model, examples, numerics=request.numerics, scratch=Path(request.scratch)
    )
    metrics = MetricsCallback(
        trainer, stage.objective.figures, stage.objective.notes, before.figures if before else ()
    )
    own = (*stage.change.watchers(trainer.model), *stage.optimiser.watchers())
    stop = [StopAfter(stage.stop_after)] if stage.stop_after else []
    for callback in (*own, *watchers, metrics, trace, *stop):
        trainer.add_callback(callback)
    trainer.step_rows = trace.rows
    stage.objective.start(trainer.model, examples)
    if before is not None:
        trainer.checkpoint = before
        stage.objective.restore(before.below(OBJECTIVE))
    trainer.go_on(Path(request.scratch))
    return Training(
        network=trainer.model,
        trace=trace.trace,
        metrics=metrics.metrics,
        checkpoint=_stopped(stage, trainer, trace.trace, metrics.metrics),
    )


def _checkpoint(request: StepRequest) -> Checkpoint | None:
    """What the training goes on from."""
    folder = request.inputs.get(CHECKPOINT)
    return None if folder is None else Checkpoint.read(Path(folder))


def _stopped(
    stage: Stage, trainer: AnswerTrainer, trace: Trace, metrics: Metrics
) -> Checkpoint | None:
    """Where a training stands that was to stop."""
    if not stage.stop_after:
        return None
    assert trainer.optimizer is not None, "it was trained"
    return Checkpoint(
        step=trainer.state.global_step,
        tensors=state_of(trainer.model, trainer.optimizer, stage.objective.state()),
        generator=bytes(payload(torch.get_rng_state())),
        trace=trace,
        figures=metrics.shown,
    )


def make_trainer(
    stage: Stage, model: Model, examples: Sequence[Any], *, numerics: Numerics, scratch: Path
) -> AnswerTrainer:
    """The trainer of `stage`, its network attached, its optimiser set.

    Every generator is seeded first, whatever was drawn in this process before (ALG-13).
    """
    native.seed(numerics.seed)
    network = stage.change.attach(model.network)
    if stage.objective.needs_reference:
        stage.change.remember(network)
    stage.objective.attach(network)
    trainer = _trainer_class(stage, numerics.cls)(
        model=network,
        args=sft_config(stage.training, numerics, scratch),
        data_collator=stage.objective.collator(model),
        train_dataset=stage.objective.dataset(examples),
        processing_class=_processing(model),
    )
    trainer.optimizer = stage.optimiser.make(trainer.model, stage.training)
    if isinstance(trainer, ObjectiveTrainer):
        trainer.objective, trainer.examples = stage.objective, examples
        trainer.change = stage.change
    trainer.step_rows = []
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trainer_class(stage: Stage, numerics_class: str) -> type[AnswerTrainer]:
    """The objective's own; where the adapter takes part in every step, the one that asks it."""
    return stage.objective.trainer(numerics_class) if stage.change.plain else ObjectiveTrainer


def _processing(model: Model) -> PreTrainedTokenizerFast:
    end = model.chat.tokenizer.id_to_token(model.chat.end_id)
    return PreTrainedTokenizerFast(
        tokenizer_object=model.chat.tokenizer, eos_token=end, pad_token=end
    )


def sft_config(training: TrainingParams, numerics: Numerics, scratch: Path) -> SFTConfig:
    """TRL's settings: the recipe's, and `SFT_PINNED` for the rest."""
    given = {
        "output_dir": str(scratch),
        "seed": numerics.seed,
        "data_seed": numerics.seed,
        "learning_rate": training.learning_rate,
        "num_train_epochs": float(training.epochs),
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "warmup_steps": training.warmup_steps,
        "lr_scheduler_type": training.schedule,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
    }
    return SFTConfig(**settings_of(SFTConfig, {**given, **SFT_PINNED}, SFT_INERT))


def _named(fields: Fields, name: str, default: str, table: Any) -> Any:
    word = fields.text(name, default=default)
    if word not in table:
        raise InvalidRecordError(
            f"unknown {name}", where=name, expected=", ".join(sorted(table)), actual=repr(word)
        )
    return table[word]
