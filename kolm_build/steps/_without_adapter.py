"""Models that a step takes only without an adapter beside their weights (ALG-22)."""

from __future__ import annotations

from pathlib import Path

from kolm_build.core.attached_files import has_adapter
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._files import input_folder


def plain_model(request: StepRequest, role: str = "model") -> Path:
    """The folder of the input `role`, a model without an adapter beside its weights.

    Raises:
        InvalidRecordError: The derivation gives no such input, or it has an adapter.
    """
    folder = input_folder(request, role)
    check_plain(folder, where=f"inputs.{role}")
    return folder


def check_plain(folder: Path, *, where: str) -> None:
    """Refuse a model folder with an adapter beside its weights.

    Raises:
        InvalidRecordError: It has one.
    """
    if has_adapter({path.name for path in folder.iterdir()}):
        raise InvalidRecordError(
            "this step takes no model with an adapter beside its weights",
            where=where,
            expected="a model whose adapters were merged into its weights",
            advice="Such a model can be evaluated, packaged and run.",
        )
