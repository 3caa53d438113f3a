"""Load a model from a folder or an artifact; its weights stay where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.runtime.chat import Chat, messages_of
from kolm_build.runtime.files import ModelFiles, find_model
from kolm_build.runtime.generate import continue_greedily, read_prompts

MAX_NEW_TOKENS = 256
NO_LIMIT = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said.

    Attributes:
        text: The answer, without the token that ended it.
        prompt_tokens: Number of tokens it read.
        output_tokens: Number of tokens it said, the one that ended the answer included.
    """

    text: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A causal language model that answers greedily.

    Attributes:
        network: The transformers network, in evaluation mode.
        chat: Its tokenizer and chat template.
        window: Most tokens of prompt and answer together.
    """

    network: Any
    chat: Chat
    window: int

    def generate(
        self, prompt: str, *, system: str = "", max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Answer:
        """The answer to `prompt`: always the likeliest next token.

        Raises:
            InvalidDataError: Prompt and answer do not fit the model's window.
        """
        ids = self.chat.prompt_ids(messages_of(prompt, system=system))
        self.check_length(len(ids) + max_new_tokens)
        (output,) = self.continuations([ids], max_new_tokens=max_new_tokens)
        return Answer(
            text=self.chat.text(output), prompt_tokens=len(ids), output_tokens=len(output)
        )

    def continuations(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
    ) -> list[list[int]]:
        """The tokens that greedily follow `prompts`, which are token ids of one length."""
        return continue_greedily(
            read_prompts(self.network, prompts),
            max_new_tokens=max_new_tokens,
            stop_ids=self.chat.stop_ids,
        )

    def check_length(self, tokens: int) -> None:
        """Refuse more tokens than the model's window holds."""
        if tokens > self.window:
            raise InvalidDataError(
                "prompt and answer do not fit the model's window",
                expected=f"at most {self.window} tokens",
                actual=f"{tokens} tokens",
            )


def load(path: str | Path, *, dtype: torch.dtype | None = None) -> Model:
    """The model in the folder or artifact at `path`.

    Args:
        path: A Hugging Face folder with one safetensors file, or a `.kolm` file.
        dtype: What to compute in; the dtype of the weights where not said.

    Raises:
        InvalidRecordError: A file is missing or bad, or the architecture is not a causal
            language model that this program knows.
    """
    files = find_model(Path(path))
    network = _network(files, dtype)
    return Model(
        network=network,
        chat=Chat.of(files),
        window=_window(network),
    )


def _network(files: ModelFiles, dtype: torch.dtype | None) -> Any:
    disable_progress_bar()
    set_verbosity_error()  # what is wrong is raised below
    config = _config(files, files.table("config.json"))
    tensors = files.weights().tensors
    network, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=dtype or _stored_dtype(tensors),
        attn_implementation="sdpa",
        ignore_mismatched_sizes=True,  # they are in the report, and refused
        output_loading_info=True,
    )
    _check_report(files, report)
    return network.eval()


def _config(files: ModelFiles, settings: dict[str, object]) -> Any:
    kind = settings.get("model_type")
    # The mapping loads lazily, behind `in` and `[]` alone: its `get` finds nothing.
    known = CONFIG_MAPPING[kind] if isinstance(kind, str) and kind in CONFIG_MAPPING else None
    if known is None or known not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InvalidRecordError(
            "not a causal language model that this program knows",
            file=files.source,
            where="config.json: model_type",
            actual=repr(kind),
            advice="Models that bring code of their own are not run.",
        )
    return known.from_dict(settings)


def _stored_dtype(tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The first floating dtype of a model; a canonical model has one."""
    found = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    return next(found, torch.float32)


def _window(network: Any) -> int:
    """The positions a network knows; without a limit where it names none."""
    return int(
        getattr(network.config.get_text_config(), "max_position_embeddings", None) or NO_LIMIT
    )


def _check_report(files: ModelFiles, report: Mapping[str, Any]) -> None:
    """Refuse weights that are not exactly the network's."""
    for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        names = ", ".join(sorted(map(str, report[trouble])))
        if names:
            raise InvalidRecordError(
                "the weights do not fit the architecture",
                file=files.source,
                where="model.safetensors",
                actual=f"{trouble.replace('_', ' ')}: {names}"[:300],
            )
