"""Load a model from a folder or an artifact; its weights stay where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from kolm_build.core.quantisation_config import KEY, from_config
from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.runtime.asking import Answer, Prompt
from kolm_build.runtime.attached import attach
from kolm_build.runtime.chat import Chat, messages_of
from kolm_build.runtime.files import ModelFiles, find_model
from kolm_build.runtime.forms import Begin, begin
from kolm_build.runtime.generate import Prefix, continue_greedily, joined, read_prompts
from kolm_build.runtime.prompt_cache import PromptCache
from kolm_build.runtime.quantised import place
from kolm_build.runtime.settings import GREEDY, Form, GenerationSettings
from kolm_build.runtime.speaking import Row, Stream, spoken
from kolm_build.runtime.virtual import virtual_tokens
from kolm_build.runtime.weights import COMPUTE_DTYPES

NO_LIMIT = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A causal language model that answers.

    Attributes:
        network: The transformers network, in evaluation mode.
        chat: Its tokenizer and chat template.
        window: Most tokens of prompt and answer together.
        prompts: Prompts read before, where reading in parts changes no bit; else None.
        forms: What makes constraints, by form: made once.
    """

    network: Any
    chat: Chat
    window: int
    prompts: PromptCache | None = None
    forms: dict[Form, Begin] = field(default_factory=dict)

    def generate(
        self, prompt: str, *, system: str = "", settings: GenerationSettings = GREEDY
    ) -> Answer:
        """The answer to `prompt`; by default always the likeliest next token.

        Raises:
            InvalidDataError: Prompt and answer do not fit the model's window.
            InvalidRecordError: The settings ask for what cannot be, such as a form of answer that
                no tokens have.
        """
        (answer,) = self.answers([Prompt(text=prompt, system=system)], settings)
        return answer

    def stream(
        self, prompt: str, *, system: str = "", settings: GenerationSettings = GREEDY
    ) -> Stream:
        """The answer to `prompt` piece by piece, whole characters, as soon as each is certain.

        Raises:
            InvalidDataError: As `generate`, and all it raises; at once, before anything is read.
        """
        ids = self._ids(Prompt(text=prompt, system=system), settings)
        row = self._row(settings)
        return Stream(self._pieces(ids, row), row)

    def _pieces(self, ids: Sequence[int], row: Row) -> Iterator[str]:
        for _, piece in spoken(self.read(ids), [row]):
            yield piece

    def answers(
        self,
        prompts: Sequence[Prompt],
        settings: GenerationSettings = GREEDY,
        *,
        together: int = 1,
    ) -> list[Answer]:
        """The answers to `prompts`, in their order.

        Args:
            prompts: What is asked.
            settings: How each answer is made; a prompt's answer is the one it gets alone.
            together: Most answers that are said together: more than one only where that changes
                no bit, under `portable-1`.

        Raises:
            InvalidDataError: A prompt does not fit; its number, from 1, is named.
            InvalidRecordError: The settings ask for what cannot be.
        """
        ids = [self._numbered(number, one, settings) for number, one in enumerate(prompts, 1)]
        found: list[Answer] = []
        for start in range(0, len(ids), together):
            found += self._said(ids[start : start + together], settings)
        return found

    def _said(
        self, prompts: Sequence[Sequence[int]], settings: GenerationSettings
    ) -> Iterator[Answer]:
        rows = [self._row(settings) for _ in prompts]
        prefixes = [self.read(ids) for ids in prompts]
        texts = [""] * len(rows)
        for number, piece in spoken(joined(prefixes, room=settings.max_new_tokens), rows):
            texts[number] += piece
        for ids, row, text in zip(prompts, rows, texts, strict=True):
            yield Answer(text=text, prompt_tokens=len(ids), output_tokens=len(row.ids), end=row.end)

    def _numbered(self, number: int, prompt: Prompt, settings: GenerationSettings) -> Sequence[int]:
        try:
            return self._ids(prompt, settings)
        except InvalidDataError as error:
            raise error.under(f"prompt {number}") from None

    def _ids(self, prompt: Prompt, settings: GenerationSettings) -> Sequence[int]:
        ids = self.chat.prompt_ids(messages_of(prompt.text, system=prompt.system))
        self.check_length(len(ids) + settings.max_new_tokens)
        return ids

    def read(self, ids: Sequence[int]) -> Prefix:
        """The prompt of the tokens `ids`, read."""
        return self.prompts.read(ids) if self.prompts else read_prompts(self.network, [ids])

    def _row(self, settings: GenerationSettings) -> Row:
        form = settings.form
        if form is None:
            return Row(self.chat, settings, None)
        if form not in self.forms:
            words = self.network.config.get_text_config().vocab_size
            self.forms[form] = begin(form, self.chat, words)
        return Row(self.chat, settings, self.forms[form])

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
        path: A Hugging Face folder with one safetensors file, or a `.kolm` file; quantised
            weights stay as they are stored, and an adapter beside the weights is attached.
        dtype: What to compute in; the dtype of the weights where not said.

    Raises:
        InvalidRecordError: A file is missing or bad, the architecture is not a causal language
            model that this program knows, or the weights are quantised in another way than this
            program does.
    """
    files = find_model(Path(path))
    network = attach(_network(files, dtype), files).eval()
    return Model(
        network=network,
        chat=Chat.of(files),
        window=_window(network) - virtual_tokens(network),
    )


def _network(files: ModelFiles, dtype: torch.dtype | None) -> Any:
    disable_progress_bar()
    set_verbosity_error()  # what is wrong is raised below
    settings = files.table("config.json")
    if KEY in settings:
        return _quantised_network(files, settings, dtype)
    config = _config(files, settings)
    tensors = files.weights().tensors
    _check_plain(files, tensors)
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


def _quantised_network(
    files: ModelFiles, settings: dict[str, object], dtype: torch.dtype | None
) -> Any:
    """The network of a folder with `quantization_config`."""
    stored = _named_dtype(files, settings)
    try:
        layers = from_config(settings.pop(KEY))
        network = without_weights(_config(files, settings), dtype or stored)
        place(network, layers, files.weights().tensors, stored=stored, dtype=dtype or stored)
    except InvalidRecordError as error:
        raise error.in_file(files.source) from None
    return network.eval()


def without_weights(config: Any, dtype: torch.dtype) -> Any:
    """The network of `config`: its parameters on the meta device, its constants as they are."""
    with torch.device("meta"):
        network = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(  # noqa: SLF001 -- there is no other door that takes a configuration and makes no weights
            config, dtype=dtype, attn_implementation="sdpa"
        )
    for module in network.modules():
        names = [name for name, one in module.named_buffers(recurse=False) if one.is_meta]
        for name in names:
            setattr(module, name, torch.empty_like(getattr(module, name), device="cpu"))
        if names:
            network._init_weights(module)  # noqa: SLF001 -- the class's own hook: constants from the configuration, as `from_pretrained` makes them
    return network


def _named_dtype(files: ModelFiles, settings: Mapping[str, object]) -> torch.dtype:
    """The dtype that config.json names: that of the model before it was quantised."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in COMPUTE_DTYPES.values()}
    found = settings.get("dtype", settings.get("torch_dtype"))
    if not isinstance(found, str) or found not in names:
        raise InvalidRecordError(
            "a quantised model must say its dtype",
            file=files.source,
            where="config.json: dtype",
            expected=", ".join(names),
            actual=repr(found),
        )
    return names[found]


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


def _check_plain(files: ModelFiles, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse codes of eight bits where no configuration says what they stand for."""
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float8_e4m3fn:
            raise InvalidRecordError(
                "quantised weights without a configuration",
                file=files.source,
                where=f"model.safetensors: {name}",
                expected=f"{KEY} in config.json",
            )


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
