"""The operations that training and asking a model would use (`kolm numerics check`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.coverage import Use, watched
from kolm_build.numerics.guard import translated
from kolm_build.runtime.files import find_model

_ROWS, _TOKENS, _NEW_TOKENS = 2, 16, 4


def operations_of(path: Path) -> Sequence[Use]:
    """What one AdamW step and one sampled and one greedy generation of the model at `path` use.

    The model has the architecture of its `config.json` and random weights: which operations run
    does not depend on them.

    Raises:
        InvalidRecordError: There is no model, or not a language model that this program knows.
        UncertifiedOperatorError: A portable kernel refused a dtype: nothing more can be said.
    """
    disable_progress_bar()
    set_verbosity_error()
    network = _network(path)
    with translated(), watched(network) as uses:
        _train(network)
        _generate(network)
    return sorted(uses, key=lambda use: (use.operator, use.place, use.dtypes))


def _network(path: Path) -> Any:
    settings = find_model(path).table("config.json")
    kind = settings.get("model_type")
    known = CONFIG_MAPPING[kind] if isinstance(kind, str) and kind in CONFIG_MAPPING else None
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING):
        if known is not None and known in mapping:
            config = known.from_dict(settings)
            return mapping[known](config).to(config.dtype or torch.float32)
    raise InvalidRecordError(
        "not a language model that this program knows",
        file=str(path),
        where="config.json: model_type",
        actual=repr(kind),
        advice="Models that bring code of their own are not run.",
    )


def _tokens(network: Any) -> torch.Tensor:
    words = int(network.config.get_text_config().vocab_size)
    return torch.arange(_ROWS * _TOKENS).reshape(_ROWS, _TOKENS) % words


def _train(network: Any) -> None:
    network.train()
    tokens = _tokens(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    network(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def _generate(network: Any) -> None:
    network.eval()
    tokens = _tokens(network)
    for sample in (False, True):
        with torch.no_grad():
            network.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=_NEW_TOKENS,
                do_sample=sample,
                pad_token_id=0,
            )
