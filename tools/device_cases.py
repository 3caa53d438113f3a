"""What `tools/device_check.py` computes on a CPU and on a GPU: cases with a hash each.

Inputs are made of integers, so that they are the same numbers everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from torch import Tensor

Case = Callable[[], Tensor | tuple[Tensor, ...]]

UNARY = (
    "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "tanh", "erf", "erfc", "sigmoid",
    "silu", "rsqrt", "sqrt", "reciprocal", "sin", "cos", "mish",
)  # fmt: skip
SPECIAL = (0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x80000001)
"""Bit patterns of zeros, infinities, a NaN and the least subnormal numbers."""

VALUES_OF = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def digest(tensors: Tensor | tuple[Tensor, ...]) -> str:
    """SHA-256 over dtype, shape and bytes of each tensor, on the host."""
    found = hashlib.sha256()
    for tensor in tensors if isinstance(tensors, tuple) else (tensors,):
        host = tensor.detach().cpu().contiguous()
        found.update(f"{host.dtype} {tuple(host.shape)}".encode())
        found.update(host.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class Inputs:
    """Numbers from integers of a fixed generator.

    Args:
        device: Where the tensors go.
        seed: Of the generator.
    """

    def __init__(self, device: str, seed: int) -> None:
        self.device = device
        self.rng = np.random.Generator(np.random.PCG64(seed))

    def values(self, *shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
        """Of either sign, mostly between 2^-6 and 2, exact in binary32."""
        whole = self.rng.integers(-(1 << 23), 1 << 23, size=shape).astype(np.float32)
        scale = np.exp2(self.rng.integers(-4, 2, size=shape)).astype(np.float32)
        made = torch.from_numpy(whole * np.float32(2.0**-23) * scale).to(dtype).to(self.device)
        return made.requires_grad_(grad)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Below `high`."""
        return torch.from_numpy(self.rng.integers(0, high, size=shape)).to(self.device)

    def patterns(self, count: int) -> Tensor:
        """Every kind of binary32: equally spaced bit patterns and the special numbers."""
        step = np.uint64((1 << 32) // count)
        spaced = (np.arange(count, dtype=np.uint64) * step).astype(np.uint32)
        bits = np.concatenate([spaced, np.array(SPECIAL, np.uint32)])
        return torch.from_numpy(bits.view(np.float32)).to(self.device)

    def matrix(self, rows: int, columns: int, dtype: torch.dtype, *, transposed: bool) -> Tensor:
        """Of `rows` x `columns`, stored transposed where asked."""
        if transposed:
            return self.values(columns, rows, dtype=dtype).t()
        return self.values(rows, columns, dtype=dtype)


def cases(device: str, *, big: bool) -> Iterator[tuple[str, Case]]:
    """All cases; `big` takes sizes that only real kernels finish.

    Args:
        device: A torch device.
        big: Whether to take the larger sizes.
    """
    for family in (
        products, sums, rows, norms, losses, gathers, functions, attention, random_numbers,
    ):  # fmt: skip
        yield from family(device, big=big)
    for small_family in (arithmetic, optimiser, orders):
        yield from small_family(device)


def products(device: str, *, big: bool) -> Iterator[tuple[str, Case]]:
    shapes = [(1, 70, 300), (3, 130, 513), (70, 65, 600), (130, 8, 257), (5, 5, 0)]
    if big:
        shapes += [
            (512, 576, 576), (1024, 1000, 1536), (129, 4097, 2049), (1, 49152, 576),
            (2050, 2048, 300),
        ]  # fmt: skip
    for m, n, k in shapes:
        for layout in ("nn", "nt", "tn"):
            for kind in ("f32", "bf16", "f16"):
                make = Inputs(device, m + n + k)
                dtype = VALUES_OF[kind]
                a = make.matrix(m, k, dtype, transposed=layout[0] == "t")
                b = make.matrix(k, n, dtype, transposed=layout[1] == "t")
                yield f"mm {m}x{n}x{k} {layout} {kind}", partial(torch.mm, a, b)
    make = Inputs(device, 1)
    a, b, c = make.values(6, 33, 70), make.values(6, 70, 40), make.values(6, 33, 40)
    yield "bmm", lambda: torch.bmm(a, b)
    yield "baddbmm", lambda: torch.baddbmm(c, a, b, beta=0.3, alpha=1.7)
    yield "addmm", lambda: torch.addmm(c[0, 0], a[0], b[0])
    yield "addmm scaled", lambda: torch.addmm(c[0], a[0], b[0], beta=0.7, alpha=0.1)
    yield "addmv", lambda: torch.addmv(c[0, :, 0], a[0], b[0, :, 0])
    wide, deep = make.values(6, 9001), make.values(9001, 130)
    yield "mm of 36 chunks", lambda: torch.mm(wide, deep)
    yield "dot", lambda: torch.dot(a.reshape(-1), a.flip(0).reshape(-1))


def sums(device: str, *, big: bool) -> Iterator[tuple[str, Case]]:
    make = Inputs(device, 2)
    x = make.values(7, 1031, 5)
    long = make.values(20_000_003 if big else 40_007)
    yield "sum all", x.sum
    yield "sum long", long.sum
    for dims in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2)):
        yield f"sum {dims}", partial(x.sum, dims)
        yield f"mean {dims}", partial(x.mean, dims, keepdim=True)
    yield "sum of a transposed", lambda: x.transpose(0, 1).sum()
    yield "column sums", lambda: make.values(9001, 37).sum(0)
    yield "norm", lambda: torch.linalg.vector_norm(long)
    yield "norm 1", lambda: torch.linalg.vector_norm(x, 1, dim=1)
    yield "cumsum", lambda: (x.cumsum(1), x.cumsum(-1))
    yield "sum bf16", lambda: x.bfloat16().sum(1)


def rows(device: str, *, big: bool) -> Iterator[tuple[str, Case]]:
    for n in (1, 33, 1000, 5003, *((49152,) if big else ())):
        make = Inputs(device, n)
        x, dy = make.values(9, n) * 8, make.values(9, n)
        yield f"softmax {n}", partial(torch.softmax, x, -1)
        yield f"log_softmax {n}", partial(torch.log_softmax, x, -1)
        yield f"logsumexp {n}", partial(torch.logsumexp, x, -1)
        for name in ("softmax", "log_softmax"):

            def gradient(x: Tensor = x, dy: Tensor = dy, name: str = name) -> Tensor:
                leaf = x.clone().requires_grad_()
                getattr(torch, name)(leaf, -1).backward(dy)
                assert leaf.grad is not None
                return leaf.grad

            yield f"{name} gradient {n}", gradient
    make = Inputs(device, 3)
    x = make.values(4, 30, 5)
    yield "softmax of a middle dimension", lambda: torch.softmax(x, 1)
    hidden = x.masked_fill(x < 3.0, float("-inf"))
    yield "softmax of nothing", lambda: torch.softmax(hidden, 1)


def norms(device: str, *, big: bool) -> Iterator[tuple[str, Case]]:
    for n in (64, 768, 5000 if big else 4100):
        for kind in ("layer", "rms"):

            def both(n: int = n, kind: str = kind) -> tuple[Tensor, ...]:
                make = Inputs(device, n)
                x, gain = make.values(37, n, grad=True), make.values(n, grad=True)
                bias, dy = make.values(n, grad=True), make.values(37, n)
                if kind == "layer":
                    y = F.layer_norm(x, (n,), gain, bias, 1e-5)
                else:
                    y = F.rms_norm(x, (n,), gain, 1e-6)
                y.backward(dy)
                found = (y, x.grad, gain.grad, bias.grad)
                return tuple(t for t in found if t is not None)

            yield f"{kind} norm {n}", both


def losses(device: str, *, big: bool) -> Iterator[tuple[str, Case]]:
    count, classes = (4096, 5000) if big else (70, 131)
    for reduction in ("mean", "sum", "none"):
        for weighted in (False, True):

            def both(
                reduction: str = reduction, *, weighted: bool = weighted
            ) -> tuple[Tensor, ...]:
                make = Inputs(device, 5)
                x, targets = make.values(count, classes, grad=True), make.integers(classes, count)
                targets[::7] = -100
                weight = make.values(classes).abs() if weighted else None
                loss = F.cross_entropy(x, targets, weight, reduction=reduction)
                (loss if loss.dim() == 0 else (loss * make.values(count)).sum()).backward()
                assert x.grad is not None
                return loss, x.grad

            yield f"cross entropy {reduction} {'weighted' if weighted else ''}", both


def gathers(device: str, *, big: bool) -> Iterator[tuple[str, Case]]:
    positions, words, width = (8192, 5000, 576) if big else (200, 17, 33)

    def embedding() -> tuple[Tensor, ...]:
        make = Inputs(device, 6)
        table, at = make.values(words, width, grad=True), make.integers(words, 2, positions // 2)
        y = F.embedding(at, table, padding_idx=3)
        y.backward(make.values(2, positions // 2, width))
        assert table.grad is not None
        return y, table.grad

    def index_add() -> Tensor:
        make = Inputs(device, 7)
        x, at = make.values(words, width), make.integers(words, positions)
        return x.index_add(0, at, make.values(positions, width), alpha=0.3)

    yield "embedding", embedding
    yield "index_add", index_add


def functions(device: str, *, big: bool) -> Iterator[tuple[str, Case]]:
    count = 1 << 24 if big else 4001
    x = Inputs(device, 8).patterns(count)
    for name in UNARY:
        function = getattr(torch if hasattr(torch, name) else F, name)
        yield name, partial(function, x)
    for how in ("none", "tanh"):
        yield f"gelu {how}", partial(F.gelu, x, approximate=how)
    make = Inputs(device, 9)
    dy = make.values(x.numel())
    differentiable: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": F.gelu,
        "gelu tanh": lambda t: F.gelu(t, approximate="tanh"), "mish": F.mish,
    }  # fmt: skip
    for name, forward in differentiable.items():

        def gradient(function: Callable[[Tensor], Tensor] = forward) -> Tensor:
            leaf = x.clone().requires_grad_()
            function(leaf).backward(dy)
            assert leaf.grad is not None
            return leaf.grad

        yield f"{name} gradient", gradient
    for exponent in (2.0, 3.0, -1.0, 0.5, -0.5, 1.7, -3.3):
        yield f"pow {exponent}", partial(x.pow, exponent)
    yield "pow of a number", lambda: 10000.0 ** make.values(1000)
    yield "exp bf16", lambda: torch.exp(x.bfloat16())


def arithmetic(device: str) -> Iterator[tuple[str, Case]]:
    make = Inputs(device, 10)
    a, b, c = (make.values(513, 70) for _ in range(3))
    column = make.values(513, 1)
    yield "add scaled", lambda: torch.add(a, b, alpha=0.1)
    yield "sub scaled", lambda: torch.sub(a, b, alpha=0.3)
    yield "add mul", lambda: a * b + c * column - a
    yield "div", lambda: (a / b, a / column, a / 3.0, 3.0 / a, a / c.sum())
    yield "addcmul", lambda: torch.addcmul(a, b, c, value=0.7)
    yield "addcdiv", lambda: torch.addcdiv(a, b, c, value=-0.7)
    yield "lerp", lambda: (torch.lerp(a, b, 0.1), torch.lerp(a, b, 0.9))
    yield "add scaled bf16", lambda: torch.add(a.bfloat16(), b.bfloat16(), alpha=0.1)


def attention(device: str, *, big: bool) -> Iterator[tuple[str, Case]]:
    queries, keys = (300, 513) if big else (21, 37)
    for kind in ("plain", "causal", "boolean mask", "additive mask", "shared keys"):

        def both(kind: str = kind) -> tuple[Tensor, ...]:
            make = Inputs(device, 11)
            heads = 2 if kind == "shared keys" else 6
            length = queries if kind == "causal" else keys
            q = make.values(2, 6, queries, 24, grad=True)
            k, v = (make.values(2, heads, length, 24, grad=True) for _ in range(2))
            mask = None
            if kind == "boolean mask":
                mask = make.integers(3, 2, 1, queries, length) > 0
                mask[0, 0, 5] = False
            if kind == "additive mask":
                mask = make.values(1, 1, queries, length)
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=kind == "causal",
                enable_gqa=kind == "shared keys",
            )  # fmt: skip
            y.backward(make.values(*y.shape))
            return tuple(t for t in (y, q.grad, k.grad, v.grad) if t is not None)

        yield f"attention {kind}", both


def optimiser(device: str) -> Iterator[tuple[str, Case]]:
    for form in ("loop", "foreach", "fused"):

        def steps(form: str = form) -> tuple[Tensor, ...]:
            make = Inputs(device, 12)
            sizes = [(513, 70), (33,), (1,)]
            params = [make.values(*size, grad=True) for size in sizes]
            step = torch.optim.AdamW(
                params, lr=1e-3, weight_decay=0.1, foreach=form == "foreach", fused=form == "fused"
            )
            for _ in range(5):
                for param in params:
                    param.grad = make.values(*param.shape)
                torch.nn.utils.clip_grad_norm_(params, 1.0)
                step.step()
            return tuple(params)

        yield f"adamw {form}", steps


def random_numbers(device: str, *, big: bool) -> Iterator[tuple[str, Case]]:
    count = 5_000_001 if big else 4099

    def seeded(fill: Callable[[Tensor], Tensor]) -> Case:
        def draw() -> Tensor:
            torch.manual_seed(1234567890123)
            return fill(torch.empty(count, device=device))

        return draw

    yield "normal", seeded(lambda x: x.normal_(0.5, 2.0))
    yield "uniform", seeded(lambda x: x.uniform_(-3.0, 5.0))
    yield "bernoulli", seeded(lambda x: x.bernoulli_(0.3))
    yield "exponential", seeded(lambda x: x.exponential_(1.5))

    def dropout() -> tuple[Tensor, ...]:
        torch.manual_seed(7)
        x = Inputs(device, 13).values(count, grad=True)
        y = F.dropout(x, 0.1, training=True)
        y.backward(Inputs(device, 14).values(count))
        assert x.grad is not None
        return y, x.grad

    yield "dropout", dropout


def orders(device: str) -> Iterator[tuple[str, Case]]:
    make = Inputs(device, 15)
    x = (make.integers(50, 7, 3000)).float()
    yield "sort stable", lambda: tuple(torch.sort(x, stable=True))
    yield "argmax", lambda: x.argmax(-1)
    yield "max", lambda: tuple(x.max(-1))
