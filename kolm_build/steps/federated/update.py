"""``federated-update``: a site's own training in a round (FED-61 to FED-65).

From the round's adapter the site trains on its rows. What may cross is its adapter and, with
control variates, how its own changed; its rows, and the control variate itself, stay.
"""

from __future__ import annotations

from pathlib import Path

import torch

from kolm_build.core import strict_json
from kolm_build.core.federated.plan import METHODS
from kolm_build.core.fields import Fields
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.apply import applied_as
from kolm_build.steps._bounds import choice, decimal
from kolm_build.steps._conversations import read_conversations
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, output_folder
from kolm_build.steps._stage import Stage, train
from kolm_build.steps._tensors import weight_of
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps._weights import write_weights
from kolm_build.steps.adapters._files import adapter_state
from kolm_build.steps.adapters.lora import LoraParams
from kolm_build.steps.federated._local import (
    GlobalLora,
    LocalAnswers,
    Tensors,
    read_tensors,
)
from kolm_build.steps.optimisers._optimiser import Optimiser
from kolm_build.steps.optimisers.adamw import AdamW
from kolm_build.steps.optimisers.sgd import Sgd

OPTIMISERS = ("adamw", "sgd")
ADAPTER, STATE, CONTROL = "adapter_model.safetensors", "state.safetensors", "control.safetensors"
SERVER = "control."
"""Before the names of the server's control variate in its state."""


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run, within=applied_as)


def run(request: StepRequest, events: Events) -> None:
    """Train; write the update, the site's control variate and a card that says how many rows."""
    fields = Fields(request.params)
    method = choice(fields, "method", "fed-avg", METHODS)
    mu = decimal(fields, "mu", "0", least=0.0, most=1000.0)
    optimiser = choice(fields, "optimiser", "adamw", OPTIMISERS)
    start = read_tensors(input_folder(request, "global") / ADAPTER)
    server, own = _controls(request)
    objective = LocalAnswers(mu=mu, start=start, shift=_shift(method, server, own))
    stage = Stage(
        training=TrainingParams.take(fields),
        change=GlobalLora(LoraParams.take(fields), start=start, freeze_a=method == "ffa-lora"),
        optimiser=_optimiser(optimiser),
        objective=objective,
        stop_after=0,
    )
    fields.done()
    _check_class(request)
    training = train(request, events, stage)
    end = adapter_state(training.network, "fp32")
    out = output_folder(request, "update")
    stage.change.write(training.network, base=input_folder(request, "model"), out=out)
    made = _Made(method=method, mu=mu, start=start, end=end, server=server, own=own)
    _write(output_folder(request, "control") / CONTROL, made.control(stage.training, objective))
    _write(out / CONTROL, made.change(stage.training, objective))
    losses = [float(row[0]) for row in training.metrics.rows]
    _write_card(request, steps=objective.steps, losses=losses)
    for name, data in training.trace.files().items():
        (output_folder(request, "trace") / name).write_bytes(data)
    (output_folder(request, "metrics") / "metrics.csv").write_bytes(training.metrics.csv())


def _check_class(request: StepRequest) -> None:
    """The terms are added where shards are summed, which only the portable trainer does."""
    if request.numerics.cls != "portable-1":
        raise InvalidRecordError(
            "a site's training is computed in portable-1 alone",
            where="numerics.class",
            actual=request.numerics.cls,
        )


def _optimiser(name: str) -> Optimiser:
    """The papers' plain gradient steps have no momentum."""
    return Sgd(momentum=0.0) if name == "sgd" else AdamW()


def _controls(request: StepRequest) -> tuple[Tensors, Tensors]:
    """The server's control variate, and the site's own; empty where there is none yet."""
    state = read_tensors(input_folder(request, "state") / STATE)
    server = {
        name.removeprefix(SERVER): one for name, one in state.items() if name.startswith(SERVER)
    }
    own = (
        read_tensors(input_folder(request, "control") / CONTROL)
        if "control" in request.inputs
        else {}
    )
    return server, own


def _shift(method: str, server: Tensors, own: Tensors) -> Tensors:
    """C - c_i for SCAFFOLD, -g_i for FedDyn."""
    if method == "scaffold":
        names = server.keys() | own.keys()
        return {name: _of(server, name) - _of(own, name) for name in sorted(names)}
    if method == "fed-dyn":
        return {name: -one for name, one in own.items()}
    return {}


def _of(tensors: Tensors, name: str) -> torch.Tensor:
    return tensors.get(name, torch.zeros(()))


class _Made:
    """What a training changed: the site's new control variate and how it differs."""

    def __init__(
        self, *, method: str, mu: float, start: Tensors, end: Tensors, server: Tensors, own: Tensors
    ) -> None:
        self._method = method
        self._mu = mu
        self._start, self._end = start, end
        self._server, self._own = server, own

    def control(self, training: TrainingParams, objective: LocalAnswers) -> Tensors:
        """The site's control variate after the round.

        SCAFFOLD's option II: c_i - c + (x - y) / (steps * rate); FedDyn: g_i - mu (y - x).
        """
        if self._method == "fed-dyn":
            return {
                name: _of(self._own, name) - self._mu * (one - self._start[name])
                for name, one in self._end.items()
            }
        if self._method != "scaffold":
            return {}
        scale = 1.0 / (objective.steps * training.learning_rate)
        return {
            name: _of(self._own, name) - _of(self._server, name) + (self._start[name] - one) * scale
            for name, one in self._end.items()
        }

    def change(self, training: TrainingParams, objective: LocalAnswers) -> Tensors:
        """How the control variate changed, where that crosses: in SCAFFOLD."""
        if self._method != "scaffold":
            return {}
        after = self.control(training, objective)
        return {name: one - _of(self._own, name) for name, one in after.items()}


def _write(path: Path, tensors: Tensors) -> None:
    if tensors:
        write_weights(path, [weight_of(name, one) for name, one in tensors.items()])
    else:
        path.with_suffix(".none").write_bytes(b"")


def _write_card(request: StepRequest, *, steps: int, losses: list[float]) -> None:
    """What may be told of a training: how many rows and steps, and the first and last loss."""
    rows = read_conversations(input_folder(request, "train") / "train.jsonl")
    card = {
        "version": 1,
        "rows": len(rows),
        "steps": steps,
        "loss_first": f"{losses[0]:.4f}",
        "loss_last": f"{losses[-1]:.4f}",
    }
    (output_folder(request, "card") / "card.json").write_bytes(strict_json.dumps(card))
