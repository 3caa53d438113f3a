"""``sft``: supervised fine-tuning of LoRA adapters on the train rows (spec/sft.md).

TRL's trainer and PEFT's adapters do the work. Rows reach the trainer as tokens that the runtime
made, with a loss on the answer alone, and its only products are the adapters' tensors and the
losses: every file is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from kolm_build.core import strict_json
from kolm_build.core.numerics import Numerics
from kolm_build.core.request import StepRequest
from kolm_build.core.trace import Trace
from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.numerics.apply import applied_as
from kolm_build.runtime.load import Model, load
from kolm_build.runtime.weights import COMPUTE_DTYPES
from kolm_build.steps._adapter import adapter_config
from kolm_build.steps._conversations import Conversation, read_conversations
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, output_folder
from kolm_build.steps._params import ALL_LINEAR, SftParams
from kolm_build.steps._pinned import LORA_INERT, LORA_PINNED, SFT_INERT, SFT_PINNED
from kolm_build.steps._settings import settings_of
from kolm_build.steps._tensors import weight_of
from kolm_build.steps._trace import TraceCallback, diverged
from kolm_build.steps._trainer import ROWS, AnswerTrainer, NumberedCollator, ShardTrainer
from kolm_build.steps._weights import write_weights

IGNORED = -100
"""The label of a token without a loss."""

TRAINERS: Mapping[str, type[AnswerTrainer]] = {
    "native-1": AnswerTrainer,
    "portable-1": ShardTrainer,
}
"""The trainer of each numerics class."""


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run, within=applied_as)


def run(request: StepRequest, events: Events) -> None:
    """Train adapters for `model` on `train`; write them and the trace of their losses."""
    training = train(request, events)
    _write_adapter(
        output_folder(request, "adapter"), training.network, SftParams.parse(request.params)
    )
    for name, data in training.trace.files().items():
        (output_folder(request, "trace") / name).write_bytes(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a training made.

    Attributes:
        network: The network with its adapters.
        trace: What every step left.
    """

    network: Any
    trace: Trace


def train(
    request: StepRequest, events: Events, watchers: Sequence[TrainerCallback] = ()
) -> Training:
    """Train as `request` says, its arithmetic applied already; nothing is written.

    Args:
        request: The step's request.
        events: Takes the progress.
        watchers: Told of every step before the trace is; they may end the training early.
    """
    params = SftParams.parse(request.params)
    rows = read_conversations(input_folder(request, "train") / "train.jsonl")
    model = load(input_folder(request, "model"), dtype=COMPUTE_DTYPES[params.compute_dtype])
    _check_modules(model.network, params.target_modules)
    columns = tokenise(model, rows, max_length=params.max_length)
    trace = TraceCallback(request, columns, events)
    trainer = _trainer(
        model,
        columns,
        args=sft_config(params, request.numerics, Path(request.scratch)),
        peft_config=lora_config(params),
        callbacks=[*watchers, trace],
        kind=TRAINERS[request.numerics.cls],
    )
    trainer.step_rows = trace.rows
    trainer.train()
    return Training(network=trainer.model, trace=trace.trace)


def tokenise(
    model: Model, rows: Sequence[Conversation], *, max_length: int
) -> dict[str, list[list[int]]]:
    """The rows as token ids and labels: the prompt's tokens have no loss, the answer's have.

    Raises:
        InvalidDataError: A row has more than `max_length` tokens; nothing is ever cut off.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for number, row in enumerate(rows, 1):
        prompt, answer = model.chat.prompt_ids(row.messages), model.chat.answer_ids(row.answer)
        length = len(prompt) + len(answer)
        if length > min(max_length, model.window):
            raise InvalidDataError(
                "a row has too many tokens",
                file="train.jsonl",
                where=f"row {number} ({row.id})",
                expected=f"at most {min(max_length, model.window)} tokens",
                actual=f"{length} tokens",
                advice="Raise max_length, or leave the row out: rows are never cut off.",
            )
        columns["input_ids"].append(prompt + answer)
        columns["labels"].append([IGNORED] * len(prompt) + answer)
    return columns


def _trainer(
    model: Model,
    columns: dict[str, list[list[int]]],
    *,
    args: SFTConfig,
    peft_config: LoraConfig,
    callbacks: Sequence[TrainerCallback] = (),
    kind: type[AnswerTrainer] = AnswerTrainer,
) -> AnswerTrainer:
    end = model.chat.tokenizer.id_to_token(model.chat.end_id)
    collator = DataCollatorForLanguageModeling(pad_token_id=model.chat.end_id)
    numbers = list(range(1, len(columns["input_ids"]) + 1))
    trainer = kind(
        model=model.network,
        args=args,
        data_collator=NumberedCollator(collator),
        train_dataset=Dataset.from_dict({**columns, ROWS: numbers}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=model.chat.tokenizer, eos_token=end, pad_token=end
        ),
        peft_config=peft_config,
        callbacks=list(callbacks),
    )
    trainer.step_rows = []
    trainer.remove_callback(PrinterCallback)
    return trainer


def sft_config(params: SftParams, numerics: Numerics, scratch: Path) -> SFTConfig:
    """TRL's settings: the recipe's, and `SFT_PINNED` for the rest."""
    given = {
        "output_dir": str(scratch),
        "seed": numerics.seed,
        "data_seed": numerics.seed,
        "learning_rate": params.learning_rate,
        "num_train_epochs": float(params.epochs),
        "max_steps": params.max_steps or -1,
        "per_device_train_batch_size": params.batch_size,
        "gradient_accumulation_steps": params.gradient_accumulation,
        "warmup_steps": params.warmup_steps,
        "lr_scheduler_type": params.schedule,
        "weight_decay": params.weight_decay,
        "max_grad_norm": params.max_grad_norm,
    }
    return SFTConfig(**settings_of(SFTConfig, {**given, **SFT_PINNED}, SFT_INERT))


def lora_config(params: SftParams) -> LoraConfig:
    """PEFT's settings: the recipe's, and `LORA_PINNED` for the rest."""
    given = {
        "r": params.lora_r,
        "lora_alpha": params.lora_alpha,
        "lora_dropout": params.lora_dropout,
        "target_modules": list(params.target_modules) or ALL_LINEAR,
    }
    return LoraConfig(**settings_of(LoraConfig, {**given, **LORA_PINNED}, LORA_INERT))


def _check_modules(network: torch.nn.Module, names: Sequence[str]) -> None:
    """Refuse a name that no linear layer has; PEFT would pass over it in silence."""
    linear = {
        path.rpartition(".")[2]
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not network.get_output_embeddings()
    }
    for name in names:
        if name not in linear:
            raise InvalidRecordError(
                "the model has no such linear layer",
                where="target_modules",
                expected=", ".join(sorted(linear)),
                actual=repr(name),
            )


def _write_adapter(out: Path, network: Any, params: SftParams) -> None:
    dtype = COMPUTE_DTYPES[params.adapter_dtype]
    state = {name: tensor.to(dtype) for name, tensor in _adapter_state(network).items()}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise diverged(name, actual="NaN or an infinity")
    weights = [weight_of(name, tensor) for name, tensor in state.items()]
    write_weights(out / "adapter_model.safetensors", weights)
    config = adapter_config(rank=params.lora_r, alpha=params.lora_alpha, tensors=state)
    (out / "adapter_config.json").write_bytes(strict_json.dumps(config))


def _adapter_state(network: Any) -> dict[str, torch.Tensor]:
    """The adapters' tensors; PEFT must not ask a hub whether the vocabulary grew."""
    return dict(get_peft_model_state_dict(network, save_embedding_layers=False))
