"""Load a model from a folder or an artifact; its weights stay where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from kolm_build.core.quantisation_config import KEY, from_config
from kolm_build.errors import InvalidRecordError, KolmError
from kolm_build.runtime.attached import attach
from kolm_build.runtime.chat import Chat
from kolm_build.runtime.files import ModelFiles, find_model
from kolm_build.runtime.generate import continue_greedily, read_prompts
from kolm_build.runtime.quantised import place
from kolm_build.runtime.virtual import virtual_tokens
from kolm_build.runtime.weights import named_dtype, stored_dtype
from kolm_build.runtime.window import NO_LIMIT, check_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A causal language model, as steps use it.

    Attributes:
        network: The transformers network, in evaluation mode.
        chat: Its tokenizer and chat template.
        window: Most tokens of prompt and answer together.
    """

    network: Any
    chat: Chat
    window: int

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
        check_length(tokens, self.window)


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
    return loaded(find_model(Path(path)), dtype=dtype)


def loaded(files: ModelFiles, *, dtype: torch.dtype | None = None) -> Model:
    """The model of `files`; the errors of `load`.

    Args:
        files: Where they lie.
        dtype: What to compute in; the dtype of the weights where not said.
    """
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
    _check_sizes(files, config, tensors)
    with _by_its_own_code(files):
        network, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=dtype or stored_dtype(tensors),
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
    stored = named_dtype(files.source, settings)
    try:
        layers = from_config(settings.pop(KEY))
        config, tensors = _config(files, settings), files.weights().tensors
        _check_sizes(files, config, tensors)
        with _by_its_own_code(files):
            network = without_weights(config, dtype or stored)
        place(network, layers, tensors, stored=stored, dtype=dtype or stored)
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
    with _by_its_own_code(files):
        return known.from_dict(settings)


@contextmanager
def _by_its_own_code(files: ModelFiles) -> Iterator[None]:
    """A block in which an architecture's own code reads config.json: it raises what it likes."""
    try:
        yield
    except (KolmError, MemoryError):
        raise
    except Exception as error:
        raise InvalidRecordError(
            "the architecture's own code refuses this configuration",
            file=files.source,
            where="config.json",
            actual=f"{type(error).__name__}: {error}"[:200],
        ) from error


_CODES = 8
"""Most elements of a weight that one of a file stands for: codes of 4 bits in words of 32."""


def _check_sizes(files: ModelFiles, config: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse sizes that the file cannot have, before modules are made for them (GEN-78)."""
    said = config.get_text_config()
    held = _CODES * sum(tensor.numel() for tensor in tensors.values())
    layers, words, hidden = (
        size if type(size := getattr(said, name, None)) is int else 0
        for name in ("num_hidden_layers", "vocab_size", "hidden_size")
    )
    if layers > len(tensors) or words * hidden > held:
        raise InvalidRecordError(
            "the weights do not fit the architecture",
            file=files.source,
            where="config.json",
            expected=f"at most {len(tensors)} layers, and {held} elements of an embedding",
            actual=f"{layers} layers, {words} tokens of {hidden}"[:200],
        )


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
