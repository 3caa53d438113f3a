"""A linear layer with several low-rank adapters and a router beside it (algorithms-mixture.md).

Training and use compute with this one module, so a model answers with the very function that was
trained. The losses that keep a router well are the trainer's: `steps/adapters/moe_lora.py`.
"""

from __future__ import annotations

import torch
from torch import nn

from kolm_build.core.attached import SOFT, Routing


class Mixture(nn.Module):
    """A linear layer with experts beside it.

    Args:
        layer: The layer.
        routing: What is computed beside it.
        down: All experts' A, one below the other, shape (experts · rank, inputs).
        router: Shape (experts, inputs).
        up: All experts' B, side by side, shape (outputs, experts · rank).
        is_trained: Whether the three take gradients; else they may be as they are stored.
    """

    def __init__(
        self,
        layer: nn.Linear,
        routing: Routing,
        *,
        down: torch.Tensor,
        router: torch.Tensor,
        up: torch.Tensor,
        is_trained: bool = True,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.routing = routing
        self.down = nn.Parameter(down, requires_grad=is_trained)
        self.up = nn.Parameter(up, requires_grad=is_trained)
        self.router = nn.Parameter(router, requires_grad=is_trained)
        self.speaks = True
        self.logits = torch.zeros(0, routing.experts)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The layer's outputs with the experts' added: float32, rounded once to the layer's dtype.

        Determinism:
            Every token is computed on its own; under `portable-1` bitwise whatever is beside it.
        """
        told = self.layer(values)
        if not self.speaks:
            return told
        inputs = values.float()
        self.logits = inputs @ self.router.float().T
        weights = gates(self.logits, self.routing).repeat_interleave(self.routing.rank, dim=-1)
        scale = self.routing.alpha / self.routing.rank
        change = ((inputs @ self.down.float().T) * weights) @ self.up.float().T
        return told + (change * scale).to(told.dtype)


def gates(logits: torch.Tensor, routing: Routing) -> torch.Tensor:
    """How much each expert counts, of the router's `logits`, shape (..., experts).

    Of one expert that is its probability, through which the router learns; of several the
    probabilities are scaled to add up to 1.
    """
    p = torch.softmax(logits, dim=-1)
    if routing.routing == SOFT:
        return p
    kept = p * chosen(logits, routing.top_k)
    return kept if routing.top_k == 1 else kept / kept.sum(dim=-1, keepdim=True)


def chosen(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """1 at the `top_k` greatest logits of each token, of equal ones the first; 0 elsewhere."""
    places = logits.detach().sort(dim=-1, descending=True, stable=True)[1][..., :top_k]
    return torch.zeros_like(logits).scatter(-1, places, 1.0)


def mixtures(network: nn.Module) -> list[tuple[str, Mixture]]:
    """The mixtures of `network`, by their paths."""
    return [(path, one) for path, one in network.named_modules() if isinstance(one, Mixture)]
