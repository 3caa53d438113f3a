"""``moe-lora``: several low-rank adapters beside each layer, and a router that chooses among them.

Of each token the router's likeliest `top_k` experts speak (arXiv:2404.15159, equations 3 to 5).
Two losses keep the router well: load balance (arXiv:2101.03961, equation 4) and the z-loss
(arXiv:2202.08906, equation 5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from kolm_build.core.attached import PARTS, TOP, Mixed, Routing
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.mixture import Mixture, chosen, mixtures
from kolm_build.runtime.weights import COMPUTE_DTYPES
from kolm_build.steps._bounds import choice, count, decimal
from kolm_build.steps._training_params import DTYPES
from kolm_build.steps.adapters._change import Change, adapted_layers, check_layers
from kolm_build.steps.adapters._files import finite, write_adapter
from kolm_build.steps.adapters.lora import modules


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeLoraParams:
    """What a recipe may say of a mixture of adapters.

    Attributes:
        experts: Adapters beside each layer.
        top_k: How many of them speak of a token.
        routing: ``top``; ``soft`` where all of them speak, weighted (`lora_moe`).
        balance_weight: Factor of the loss that spreads tokens over the experts.
        z_weight: Factor of the loss that keeps the router's logits small.
        lora_r: Rank of each expert.
        lora_alpha: An expert's change is scaled by `lora_alpha` over `lora_r`.
        target_modules: Names of the linear layers to adapt; empty for every one of them.
        adapter_dtype: How it is stored; it is trained in float32.
    """

    experts: int
    top_k: int
    routing: str
    balance_weight: float
    z_weight: float
    lora_r: int
    lora_alpha: int
    target_modules: tuple[str, ...]
    adapter_dtype: str

    @classmethod
    def take(cls, fields: Fields, routing: str = TOP) -> Self:
        """The parameters in `fields`; what is left out has the value given here.

        Raises:
            InvalidRecordError: More experts would speak than there are.
        """
        experts = count(fields, "experts", 4)
        made = cls(
            experts=experts,
            top_k=count(fields, "top_k", 2) if routing == TOP else experts,
            routing=routing,
            balance_weight=decimal(fields, "balance_weight", "0.01", least=0.0, most=1000.0),
            z_weight=decimal(fields, "z_weight", "0.001", least=0.0, most=1000.0),
            lora_r=count(fields, "lora_r", 16),
            lora_alpha=count(fields, "lora_alpha", 32),
            target_modules=modules(fields, "target_modules"),
            adapter_dtype=choice(fields, "adapter_dtype", "fp32", DTYPES),
        )
        if made.top_k > made.experts:
            raise InvalidRecordError(
                "more experts would speak than there are",
                where="top_k",
                expected=f"at most {made.experts}",
                actual=str(made.top_k),
            )
        return made

    @property
    def mixture(self) -> Routing:
        """What a layer computes, in training and after it."""
        return Routing(
            experts=self.experts,
            top_k=self.top_k,
            routing=self.routing,
            rank=self.lora_r,
            alpha=self.lora_alpha,
        )


def mixture(layer: nn.Linear, routing: Routing) -> Mixture:
    """`layer` with experts beside it that change nothing yet; A and the router are drawn."""
    shapes = routing.shapes(layer.in_features, layer.out_features)
    down, router = torch.empty(shapes["down"]), torch.empty(shapes["router"])
    for matrix in (down, router):
        nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
    return Mixture(layer, routing, down=down, router=router, up=torch.zeros(shapes["up"]))


def balance_loss(logits: torch.Tensor, routing: Routing) -> torch.Tensor:
    """Experts times the sum of (share of tokens) (mean probability): 1 where all is even."""
    flat = logits.reshape(-1, routing.experts)
    shares = chosen(flat, routing.top_k).mean(dim=0) / routing.top_k
    return routing.experts * (shares * torch.softmax(flat, dim=-1).mean(dim=0)).sum()


def z_loss(logits: torch.Tensor) -> torch.Tensor:
    """The mean of (log sum exp of a token's logits)^2."""
    return (torch.logsumexp(logits, dim=-1) ** 2).mean()


class MoeLora(Change):
    """A mixture of low-rank adapters.

    Args:
        params: The recipe's words.
    """

    def __init__(self, params: MoeLoraParams) -> None:
        self.params = params

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The mixture that `fields` describe."""
        return cls(MoeLoraParams.take(fields))

    plain = False

    def attach(self, network: Any) -> Any:
        """`network` with its layers replaced by mixtures, all else frozen."""
        check_layers(network, self.params.target_modules)
        network.requires_grad_(requires_grad=False)
        for path, layer in adapted_layers(network, self.params.target_modules):
            network.set_submodule(path, mixture(layer, self.params.mixture))
        return network

    def row_penalty(self, network: Any) -> torch.Tensor | None:
        """The mean over layers of the two losses of the row that was read last."""
        layers = [one for _, one in mixtures(network)]
        terms = [
            self.params.balance_weight * balance_loss(one.logits, one.routing)
            + self.params.z_weight * z_loss(one.logits)
            for one in layers
        ]
        return torch.stack(terms).mean()

    def write(self, network: Any, *, base: Path, out: Path) -> None:
        """Write the experts and routers, what they are, and the base's digest (MOE-4)."""
        dtype = COMPUTE_DTYPES[self.params.adapter_dtype]
        state = {
            f"{path}.{part}": getattr(layer, part).detach().to(dtype)
            for path, layer in mixtures(network)
            for part in PARTS
        }
        names = sorted({path.rpartition(".")[2] for path, _ in mixtures(network)})
        config = Mixed(routing=self.params.mixture, target_modules=tuple(names)).to_value()
        write_adapter(finite(state), config, base=base, out=out)

    def reference(self, network: Any) -> AbstractContextManager[Any]:
        """The network without its experts."""
        return _silent(network)


@contextmanager
def _silent(network: Any) -> Iterator[None]:
    for _, layer in mixtures(network):
        layer.speaks = False
    try:
        yield
    finally:
        for _, layer in mixtures(network):
            layer.speaks = True
