"""One call of every operator that the portable kernels compute, on operands a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from torch import Tensor

from kolm_build.numerics import portable


@dataclass(frozen=True)
class Operands:
    """What the calls read. Floating tensors have one dtype; none of them is modified."""

    x: Tensor  # [37, 129]
    y: Tensor  # like x
    positive: Tensor  # like x, all > 0
    row: Tensor  # [129]
    index: Tensor  # int64 [300] below 37
    source: Tensor  # [300, 129]
    left: Tensor  # [13, 300]
    right: Tensor  # [300, 70]
    q: Tensor  # [2, 4, 17, 16]
    k: Tensor  # [2, 2, 23, 16]
    mask: Tensor  # bool [17, 23], a True in every row

    def to(self, dtype: torch.dtype) -> Operands:
        """The same, rounded to `dtype`."""
        floating = {
            name: value.to(dtype) for name, value in vars(self).items() if value.is_floating_point()
        }
        return replace(self, **floating)

    def map(self, change: Callable[[Tensor], Tensor]) -> Operands:
        """The same numbers, laid out as `change` does."""
        return replace(self, **{name: change(value) for name, value in vars(self).items()})


def operands(seed: int = 7) -> Operands:
    """Operands from a generator of PyTorch's own; call it where its kernels compute."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g) * 8 - 4

    mask = torch.rand(17, 23, generator=g) > 0.3
    mask[:, 0] = True
    return Operands(
        x=draw(37, 129),
        y=draw(37, 129),
        positive=draw(37, 129).abs() + 1e-3,
        row=draw(129),
        index=torch.randint(0, 37, (300,), generator=g),
        source=draw(300, 129),
        left=draw(13, 300) / 8,
        right=draw(300, 70) / 8,
        q=draw(2, 4, 17, 16) / 2,
        k=draw(2, 2, 23, 16) / 2,
        mask=mask,
    )


Call = Callable[[Operands], Tensor]

UNARY: dict[str, Call] = {
    **{
        name: lambda o, name=name: getattr(torch, name)(o.x)
        for name in ("exp", "exp2", "expm1", "tanh", "erf", "erfc", "sigmoid", "sin", "cos")
    },
    **{
        name: lambda o, name=name: getattr(torch, name)(o.positive)
        for name in ("log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal")
    },
    "square": lambda o: o.x**2,
    "cube": lambda o: o.x**3,
    "inverse": lambda o: o.positive**-1,
    "root": lambda o: o.positive**0.5,
    "one": lambda o: o.x**0,
    "itself": lambda o: o.x**1,
    "pow": lambda o: o.positive**1.3,
    "silu": lambda o: F.silu(o.x),
    "gelu": lambda o: F.gelu(o.x),
    "gelu_tanh": lambda o: F.gelu(o.x, approximate="tanh"),
    "softplus": lambda o: F.softplus(o.x),
    "mish": lambda o: F.mish(o.x),
    "logsigmoid": lambda o: F.logsigmoid(o.x),
}

BINARY: dict[str, Call] = {
    "add": lambda o: torch.add(o.x, o.y),
    "add_scaled": lambda o: torch.add(o.x, o.row, alpha=0.1),
    "sub": lambda o: torch.sub(o.x, o.y),
    "sub_scaled": lambda o: torch.sub(o.x, o.y, alpha=0.3),
    "rsub": lambda o: 1 - o.x,
    "mul": lambda o: o.x * o.y,
    "mul_number": lambda o: o.x * 0.3,
    "div": lambda o: o.x / o.positive,
    "div_number": lambda o: o.x / 7.3,
    "addcmul": lambda o: torch.addcmul(o.x, o.y, o.row, value=0.1),
    "addcdiv": lambda o: torch.addcdiv(o.x, o.y, o.positive, value=-0.01),
    "lerp": lambda o: torch.lerp(o.x, o.y, 0.1),
    "lerp_from_the_end": lambda o: torch.lerp(o.x, o.y, 0.9),
    "lerp_of_tensors": lambda o: torch.lerp(o.x, o.y, o.positive / 4),
    "maximum": lambda o: torch.maximum(o.x, o.row),
    "minimum": lambda o: torch.minimum(o.x, o.y),
    "pow_of_tensors": lambda o: o.positive**o.y,
    "pow_of_a_number": lambda o: torch.pow(10000.0, o.x / 4),
}

REDUCTIONS: dict[str, Call] = {
    "sum": lambda o: o.x.sum(),
    "sum_of_columns": lambda o: o.x.sum(0),
    "sum_of_rows": lambda o: o.x.sum(1, keepdim=True),
    "sum_of_the_middle": lambda o: o.q.sum((1, 2)),
    "sum_of_the_ends": lambda o: o.q.sum((0, 3)),
    "mean": lambda o: o.x.mean(-1),
    "mean_of_all": lambda o: o.x.mean(),
    "var": lambda o: o.x.var(-1),
    "std": lambda o: o.x.std(0),
    "norm": lambda o: o.x.norm(),
    "one_norm": lambda o: torch.linalg.vector_norm(o.x, 1, dim=0),
    "inf_norm": lambda o: torch.linalg.vector_norm(o.x, float("inf"), dim=1),
    "logsumexp": lambda o: o.x.logsumexp(0),
    "prod": lambda o: (o.positive / 4).prod(0),
    "cumsum": lambda o: o.x.cumsum(0),
    "amax": lambda o: o.x.amax((0, 1)),
    "max": lambda o: o.x.max(0).values,
    "min": lambda o: o.x.min(),
}

ROWS: dict[str, Call] = {
    "softmax": lambda o: o.x.softmax(-1),
    "softmax_of_columns": lambda o: o.q.softmax(1),
    "log_softmax": lambda o: o.x.log_softmax(-1),
    "layer_norm": lambda o: F.layer_norm(o.x, (129,), o.row, o.row),
    "layer_norm_of_matrices": lambda o: F.layer_norm(o.q, (17, 16)),
    "nll_loss": lambda o: F.nll_loss(o.x, o.index[:37]),
    "nll_loss_of_each": lambda o: F.nll_loss(o.x, o.index[:37], reduction="none"),
    "nll_loss_weighted": lambda o: F.nll_loss(
        o.x, o.index[:37], weight=o.source[0].abs(), ignore_index=5
    ),
}

PRODUCTS: dict[str, Call] = {
    "mm": lambda o: o.left @ o.right,
    "mv": lambda o: o.left @ o.right[:, 0],
    "dot": lambda o: o.left[0] @ o.right[:, 0],
    "addmm": lambda o: torch.addmm(o.row[:70], o.left, o.right),
    "addmm_scaled": lambda o: torch.addmm(o.row[:70], o.left, o.right, beta=0.3, alpha=0.7),
    "addmv": lambda o: torch.addmv(o.row[:13], o.left, o.right[:, 1], beta=2.0),
    "linear": lambda o: F.linear(o.left, o.right.t(), o.row[:70]),
    "bmm": lambda o: o.q[0] @ o.q[1].transpose(1, 2),
    "baddbmm": lambda o: torch.baddbmm(o.row[:17], o.q[0], o.q[1].transpose(1, 2), beta=0.5),
    "attention": lambda o: F.scaled_dot_product_attention(o.q, o.q, o.q, is_causal=True),
    "attention_masked": lambda o: F.scaled_dot_product_attention(
        o.q, o.k, o.k, attn_mask=o.mask, enable_gqa=True
    ),
}

INDEXING: dict[str, Call] = {
    "index_add": lambda o: o.x.clone().index_add_(0, o.index, o.source),
    "index_add_scaled": lambda o: o.x.clone().index_add_(1, o.index[:50], o.y[:, :50], alpha=0.5),
    "scatter_add": lambda o: o.x.scatter_add(0, o.index[:, None].expand(-1, 129), o.source),
    "scatter_reduce": lambda o: o.x.scatter_reduce(
        0, o.index[:, None].expand(-1, 129), o.source, "sum", include_self=False
    ),
    "index_put": lambda o: o.x.clone().index_put_((o.index,), o.source, accumulate=True),
    "index_put_of_two": lambda o: o.x.clone().index_put_(
        (o.index, o.index[:, None]), o.source[:, :1], accumulate=True
    ),
    "embedding_gradient": lambda o: torch.ops.aten.embedding_dense_backward(
        o.source, o.index, 37, -1, False
    ),
    "sort": lambda o: o.x.sort(-1).values,
    "sort_descending": lambda o: o.x.sort(0, descending=True).values,
    "topk": lambda o: o.x.topk(5, 0, largest=False).values,
}

CALLS: dict[str, Call] = {**UNARY, **BINARY, **REDUCTIONS, **ROWS, **PRODUCTS, **INDEXING}

GRADIENTS: dict[str, Call] = {
    **{name: UNARY[name] for name in UNARY if name not in ("one",)},
    **{name: ROWS[name] for name in ROWS},
    **{
        name: PRODUCTS[name]
        for name in ("mm", "addmm", "linear", "bmm", "attention", "attention_masked")
    },
    **{
        name: REDUCTIONS[name]
        for name in ("sum", "mean", "var", "std", "norm", "logsumexp", "prod", "cumsum")
    },
    "embedding": lambda o: F.embedding(o.index, o.x),
    "gather": lambda o: o.x.gather(0, o.index[:37, None].expand(-1, 129)),
    "index_select": lambda o: o.x.index_select(0, o.index),
    "rms_norm": lambda o: F.rms_norm(o.x, (129,), o.row),
    "cross_entropy": lambda o: F.cross_entropy(o.x, o.index[:37]),
}
"""Calls whose gradients are compared too; each reads at least one of x, positive, row, q, left."""

LEAVES = ("x", "positive", "row", "left", "right", "q", "k")


def gradients(call: Call, o: Operands) -> dict[str, Tensor]:
    """The gradients of a weighted sum of `call`'s result with respect to every operand it reads."""
    leaves = {name: getattr(o, name).clone().requires_grad_() for name in LEAVES}
    result = call(replace(o, **leaves))
    weights = torch.linspace(-1, 1, result.numel()).reshape(result.shape).to(result.dtype)
    result.backward(weights)
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@contextmanager
def stock_kernels() -> Iterator[None]:
    """PyTorch's own kernels for a while."""
    portable.deactivate()
    try:
        yield
    finally:
        portable.activate()
