"""``attach``: an adapter that cannot be merged lies beside the weights (ALG-20).

The result is a model folder that the runtime reads: the base's files, bit for bit, and the
adapter's. Nothing is computed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from kolm_build.core import strict_json
from kolm_build.core.attached import read_attached
from kolm_build.core.attached_files import CONFIG, FILES, TENSORS
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._base import FILE, PLAIN, Base
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import copy_others, files_of, input_folder, output_folder
from kolm_build.steps._params import check_none
from kolm_build.steps._weights import read_weights
from kolm_build.steps._without_adapter import plain_model

WEIGHTS = "model.safetensors"


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write the model of input `model` with the adapter of input `adapter` beside its weights."""
    check_none(request.params)
    model, adapter = plain_model(request), input_folder(request, "adapter")
    check_fits(model, adapter)
    out = output_folder(request)
    copy_others(model, out, but="")
    for name in files_of(adapter):
        if (out / name).exists():
            raise InvalidRecordError("a file of the model and of the adapter", file=name)
        shutil.copyfile(adapter / name, out / name)
    events.log(f"{len(FILES)} files beside the weights")


def check_fits(model: Path, adapter: Path) -> None:
    """Refuse an adapter that was trained on other weights, or has other tensors.

    Raises:
        InvalidRecordError: It does not belong to `model`; the file is named.
    """
    weights = read_weights(model / WEIGHTS)
    base = Base.read(adapter)
    if base is None or base.stored != PLAIN:
        raise InvalidRecordError(
            "nothing says that the adapter was trained on plain weights",
            file=FILE,
            where="stored",
            expected=PLAIN,
            actual="no such file" if base is None else base.stored,
        )
    base.check(weights)
    try:
        said = read_attached(strict_json.loads((adapter / CONFIG).read_bytes()))
    except InvalidRecordError as error:
        raise error.in_file(CONFIG) from None
    beside = {one.name: (one.dtype, one.shape) for one in read_weights(adapter / TENSORS)}
    said.check({one.name: one.shape for one in weights}, beside)
