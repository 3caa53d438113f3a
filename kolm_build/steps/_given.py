"""What a stage was given, as its objective sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kolm_build.core.request import StepRequest
from kolm_build.runtime.loading import Model
from kolm_build.steps._entry import Events
from kolm_build.steps._files import input_folder
from kolm_build.steps._sequences import Tokeniser
from kolm_build.steps.adapters._change import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What an objective may look at.

    Attributes:
        request: The step's request.
        model: The model that is trained, before anything is attached to it.
        tokens: Makes sequences of rows.
        change: What may change; its `reference` is the model as it was.
        events: Takes progress and lines for the log.
    """

    request: StepRequest
    model: Model
    tokens: Tokeniser
    change: Change
    events: Events

    def rows(self) -> Path:
        """The file of the training rows."""
        return input_folder(self.request, "train") / "train.jsonl"
