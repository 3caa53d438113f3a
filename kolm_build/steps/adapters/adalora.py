"""``adalora``: W + P L Q whose ranks go where they matter (arXiv:2303.10512, algorithm 1).

P and Q are held orthogonal by a penalty (equation 4), and singular values L of low importance are
set to 0 as the budget of ranks falls. PEFT's `AdaLoraConfig` makes the modules; the penalty and
the allocation are own code, since PEFT's hang on its own loss and on a power of the C library. The
result is written as the LoRA that it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import AdaLoraConfig, get_peft_model
from peft.tuners.adalora import SVDLinear
from transformers import TrainerCallback

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.weights import COMPUTE_DTYPES
from kolm_build.steps._adapter import adapter_config
from kolm_build.steps._bounds import choice, count, decimal
from kolm_build.steps._pinned_adapters import ADALORA as PINNED
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps.adapters._budget import Budget, Importance, kept, triplet_scores
from kolm_build.steps.adapters._change import Change, check_layers
from kolm_build.steps.adapters._files import finite, write_adapter
from kolm_build.steps.adapters._initialised import ADAPTER
from kolm_build.steps.adapters.lora import ALL_LINEAR, modules

_SIDES = ("lora_E", "lora_A", "lora_B")
_RANK_SHIFT = 1e-5
"""PEFT divides by the rank plus this, so that a rank of 0 is no division by 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaLoraParams:
    """What a recipe may say of it.

    Attributes:
        init_r: Rank of every layer at the start.
        target_r: Mean rank in the end.
        lora_alpha: The change is scaled by `lora_alpha` over `init_r`.
        lora_dropout: Share of an adapter's inputs that is dropped in training.
        warmup: Steps before the budget falls.
        cooldown: Steps after it fell.
        interval: Steps between two allocations.
        beta1: Decay of the mean of sensitivities.
        beta2: Decay of the mean of uncertainties.
        penalty: Weight of the penalty that holds vectors orthogonal.
        target_modules: Names of the linear layers to adapt; empty for every one of them.
        adapter_dtype: How it is stored.
    """

    init_r: int
    target_r: int
    lora_alpha: int
    lora_dropout: float
    warmup: int
    cooldown: int
    interval: int
    beta1: float
    beta2: float
    penalty: float
    target_modules: tuple[str, ...]
    adapter_dtype: str

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The parameters in `fields`; what is left out has the value given here.

        Raises:
            InvalidRecordError: The ranks would have to rise.
        """
        made = cls(
            init_r=count(fields, "adalora_init_r", 12),
            target_r=count(fields, "adalora_target_r", 8),
            lora_alpha=count(fields, "lora_alpha", 32),
            lora_dropout=decimal(fields, "lora_dropout", "0", least=0.0, most=0.99),
            warmup=count(fields, "adalora_warmup", 0, least=0),
            cooldown=count(fields, "adalora_cooldown", 0, least=0),
            interval=count(fields, "adalora_interval", 1),
            beta1=decimal(fields, "adalora_beta1", "0.85", least=0.0, most=1.0),
            beta2=decimal(fields, "adalora_beta2", "0.85", least=0.0, most=1.0),
            penalty=decimal(fields, "adalora_penalty", "0.5", least=0.0, most=1000.0),
            target_modules=modules(fields, "target_modules"),
            adapter_dtype=choice(fields, "adapter_dtype", "fp32", DTYPES),
        )
        if made.target_r > made.init_r:
            raise InvalidRecordError(
                "the budget of ranks can fall, not rise",
                where="adalora_target_r",
                expected=f"at most {made.init_r} (adalora_init_r)",
                actual=str(made.target_r),
            )
        return made


class AdaLora(Change):
    """Singular values and vectors whose ranks are allocated in training.

    Args:
        params: The recipe's words.
    """

    plain = False

    def __init__(self, params: AdaLoraParams) -> None:
        self.params = params

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The adapter that `fields` describe."""
        return cls(AdaLoraParams.take(fields))

    def attach(self, network: Any) -> Any:
        """PEFT's model around `network`."""
        params = self.params
        check_layers(network, params.target_modules)
        config = AdaLoraConfig(
            init_r=params.init_r,
            target_r=params.target_r,
            lora_alpha=params.lora_alpha,
            lora_dropout=params.lora_dropout,
            target_modules=list(params.target_modules) or ALL_LINEAR,
            total_step=1,
            **PINNED.fixed,
        )
        return get_peft_model(network, config)

    def penalty(self, network: Any) -> torch.Tensor:
        """The mean over P and Q of every layer of ||P'P - I|| (equation 4, Frobenius)."""
        terms = [_off(one) for _, layer in _layers(network) for one in _vectors(layer)]
        return self.params.penalty * torch.stack(terms).mean()

    def watchers(self, network: Any) -> Sequence[TrainerCallback]:
        """Allocates ranks after every optimiser step."""
        return (Allocator(network, self.params),)

    def write(self, network: Any, *, base: Path, out: Path) -> None:
        """Write the LoRA B = P and A = scaled L Q (ADPT-42)."""
        dtype = COMPUTE_DTYPES[self.params.adapter_dtype]
        state: dict[str, torch.Tensor] = {}
        for name, layer in _layers(network):
            scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + _RANK_SHIFT)
            down = layer.lora_A[ADAPTER] * layer.lora_E[ADAPTER] * scale
            state[f"{name}.lora_A.weight"] = down.detach().to(dtype)
            state[f"{name}.lora_B.weight"] = layer.lora_B[ADAPTER].detach().to(dtype)
        rank = self.params.init_r
        config = adapter_config(rank=rank, alpha=rank, tensors=finite(state))
        write_adapter(state, config, base=base, out=out)

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network without its adapters."""
        return network.disable_adapter()


class Allocator(TrainerCallback):
    """Masks singular values so that the budget of ranks is kept.

    Args:
        network: Whose ranks.
        params: The recipe's words.
    """

    def __init__(self, network: Any, params: AdaLoraParams) -> None:
        self._layers = list(_layers(network))
        self._params = params
        self._importance = Importance(beta1=params.beta1, beta2=params.beta2)

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_others: Any) -> None:
        """The number of steps is known now."""
        params, layers = self._params, len(self._layers)
        self._budget = Budget(
            first=params.init_r * layers,
            last=params.target_r * layers,
            warmup=params.warmup,
            cooldown=params.cooldown,
            steps=state.max_steps,
            interval=params.interval,
        )
        if params.warmup + params.cooldown >= state.max_steps:
            raise InvalidRecordError(
                "the budget of ranks has no step to fall in",
                where="adalora_warmup",
                expected=f"warm-up and cool-down together under {state.max_steps} steps",
                actual=str(params.warmup + params.cooldown),
            )

    def on_optimizer_step(
        self, _args: Any, state: Any, _control: Any, optimizer: Any, **_others: Any
    ) -> None:
        """Gradients are there still, and the weights are the new ones (algorithm 1, line 8)."""
        step = state.global_step + 1
        if step <= self._budget.steps - self._budget.cooldown:
            for _, layer in self._layers:
                for side in _SIDES:
                    one = getattr(layer, side)[ADAPTER]
                    self._importance.note(optimizer.state[one], one, one.grad)
        if self._budget.allocates(step):
            self._mask(self._budget.at(step), optimizer)

    def _mask(self, budget: int, optimizer: Any) -> None:
        scores = {
            name: triplet_scores(
                *(Importance.of(optimizer.state[getattr(layer, side)[ADAPTER]]) for side in _SIDES)
            )
            for name, layer in self._layers
        }
        stay = kept(scores, budget)
        for name, layer in self._layers:
            layer.lora_E[ADAPTER].data.masked_fill_(~stay[name][:, None], 0.0)


def _layers(network: Any) -> Iterator[tuple[str, Any]]:
    for name, module in network.named_modules():
        if isinstance(module, SVDLinear):
            yield name, module


def _vectors(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Right and left vectors as rows."""
    return layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].T


def _off(rows: torch.Tensor) -> torch.Tensor:
    """How far `rows` are from orthonormal, shape ()."""
    return torch.linalg.vector_norm(rows @ rows.T - torch.eye(len(rows)))
