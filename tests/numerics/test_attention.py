"""Fused attention gives the bits of the written-out form (NUM-40 to NUM-43)."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from tests.numerics.test_gemm import same_bits
from tests.numerics.testing_library import Array, AttentionOptions, Library, Product, matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Sizes of one problem, and which mask it has."""

    batch: int = 1
    heads: int = 2
    key_heads: int = 2
    queries: int = 5
    keys: int = 7
    width: int = 8
    value_width: int = 8
    causal: bool = False
    mask: str = "none"


CASES = [
    Case(queries=1, keys=1, width=1, value_width=1),
    Case(batch=2, heads=6, key_heads=2, queries=33, keys=45, width=16, value_width=12),
    Case(queries=40, keys=40, causal=True),
    Case(queries=300, keys=300, causal=True, heads=3, key_heads=1),
    Case(queries=40, keys=23, causal=True),
    Case(queries=23, keys=40, causal=True, mask="float"),
    Case(batch=2, queries=35, keys=300, mask="float"),
    Case(queries=35, keys=50, mask="column"),
    Case(batch=2, queries=20, keys=30, mask="bool"),
    Case(queries=20, keys=30, mask="hidden"),
    Case(queries=20, keys=30, causal=True, mask="hidden", heads=4, key_heads=1),
    Case(batch=2, heads=6, key_heads=2, queries=1, keys=270, mask="bool"),
    Case(heads=66, key_heads=1, queries=17, keys=3, width=4, value_width=5),
    Case(heads=5, key_heads=1, queries=600, keys=9, width=4, value_width=5),
    Case(queries=3, keys=0),
]


def tensors(case: Case) -> tuple[Array, Array, Array, Array]:
    """q, k, v and dout, each a view of [batch, rows, heads, width] as a model's projections are."""
    rng = np.random.default_rng(case.queries * 1000 + case.keys)

    def one(rows: int, heads: int, width: int) -> Array:
        x = rng.standard_normal((case.batch, rows, heads, width)).astype(np.float32)
        return x.transpose(0, 2, 1, 3)

    return (
        one(case.queries, case.heads, case.width),
        one(case.keys, case.key_heads, case.width),
        one(case.keys, case.key_heads, case.value_width),
        one(case.queries, case.heads, case.value_width),
    )


def mask_of(case: Case) -> Array | None:
    """An additive mask that broadcasts in as many ways as there are kinds."""
    rng = np.random.default_rng(case.keys)
    minus = np.float32(-np.inf)
    if case.mask == "none":
        return None
    if case.mask == "float":
        return rng.standard_normal((1, 1, case.queries, case.keys)).astype(np.float32)
    if case.mask == "column":
        whole = rng.standard_normal((1, case.heads, case.keys, case.queries)).astype(np.float32)
        return whole.transpose(0, 1, 3, 2)
    mask = np.where(rng.random((case.batch, 1, 1, case.keys)) < 0.4, minus, np.float32(0))
    mask[..., 0] = 0.0
    if case.mask == "hidden":
        mask = np.broadcast_to(mask, (case.batch, 1, case.queries, case.keys)).copy()
        mask[:, :, ::3] = minus
    return mask


class WrittenOut:
    """NUM-40 and NUM-41 one operation after another, over whole matrices."""

    def __init__(self, library: Library, case: Case, scale: float) -> None:
        self.library, self.case, self.scale = library, case, np.float32(scale)
        self.isa = library.isas()[-1]

    def gemm(self, a: Array, b: Array) -> Array:
        shape = (a.shape[0], b.shape[1], a.shape[1])
        return self.library.gemm_reference(Product(matrix(a), matrix(b), shape))

    def mask(self, mask: Array | None) -> Array | None:
        """The causal mask and the given one as one additive mask of the whole problem."""
        case = self.case
        shape = (case.batch, case.heads, case.queries, case.keys)
        whole = None if mask is None else np.broadcast_to(mask, shape).copy()
        if case.causal:
            later = np.arange(case.keys)[None, :] > np.arange(case.queries)[:, None]
            causal = np.where(later, np.float32(-np.inf), np.float32(0))
            whole = np.broadcast_to(causal, shape) if whole is None else whole + causal
        return whole

    def probabilities(self, q: Array, k: Array, mask: Array | None) -> Array:
        scores = self.gemm(q, k.T) * self.scale
        if mask is not None:
            scores = scores + mask
        hidden = np.isneginf(scores).all(axis=1)
        p = np.zeros_like(scores)
        if scores.size:
            p[~hidden] = self.library.softmax(self.isa, np.ascontiguousarray(scores[~hidden]))
        return p

    def run(self, q: Array, k: Array, v: Array, dout: Array, mask: Array | None):
        case, whole = self.case, self.mask(mask)
        group = case.heads // case.key_heads
        out = np.empty(dout.shape, np.float32)
        dq = np.empty(q.shape, np.float32)
        parts = [np.empty((case.batch, case.heads, *x.shape[2:]), np.float32) for x in (k, v)]
        for b, h in product(range(case.batch), range(case.heads)):
            key, value, d = k[b, h // group], v[b, h // group], dout[b, h]
            p = self.probabilities(q[b, h], key, None if whole is None else whole[b, h])
            out[b, h] = self.gemm(p, value)
            parts[1][b, h] = self.gemm(p.T, d)
            dp = self.gemm(d, value.T)
            ds = self.library.softmax_grad(self.isa, dp, p) if p.size else p
            ds = ds * self.scale
            dq[b, h] = self.gemm(ds, key)
            parts[0][b, h] = self.gemm(ds.T, q[b, h])
        return out, dq, *(self.sum_groups(part, group) for part in parts)

    def sum_groups(self, parts: Array, group: int) -> Array:
        batch, heads, rows, width = parts.shape
        out = np.empty((batch, heads // group, rows, width), np.float32)
        for b, h in product(range(batch), range(heads // group)):
            flat = np.ascontiguousarray(parts[b, h * group : (h + 1) * group].reshape(group, -1))
            if flat.size:
                out[b, h] = self.library.column_sums(self.isa, flat).reshape(rows, width)
        return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fused_attention_has_the_bits_of_the_written_out_form(library: Library, case: Case) -> None:
    """NUM-40, NUM-41 and NUM-42, forward and gradient, on every instruction set."""
    q, k, v, dout = tensors(case)
    mask, scale = mask_of(case), 0.37
    expected = WrittenOut(library, case, scale).run(q, k, v, dout, mask)
    for isa, threads in product(library.isas(), (1, 2, 3)):
        options = AttentionOptions(scale=scale, causal=case.causal, mask=mask)
        out = library.attention_forward(isa, threads, q, k, v, options=options)
        grads = library.attention_backward(isa, threads, q, k, v, dout=dout, options=options)
        for name, got, wanted in zip(
            ("out", "dq", "dk", "dv"), (out, *grads), expected, strict=True
        ):
            assert same_bits(got, wanted), (isa, threads, name)


def test_a_query_that_sees_no_key_gives_plus_zero(library: Library) -> None:
    """NUM-40: softmax is safe where a mask can hide every key."""
    case = Case(queries=20, keys=30, mask="hidden")
    q, k, v, _ = tensors(case)
    for isa in library.isas():
        out = library.attention_forward(
            isa, 1, q, k, v, options=AttentionOptions(scale=0.5, mask=mask_of(case))
        )
        assert same_bits(np.ascontiguousarray(out[:, :, ::3]), np.zeros((1, 2, 7, 8), np.float32))


@pytest.mark.parametrize("length", [1, 16, 17, 250, 257, 511, 512, 600])
def test_a_prompt_in_parts_or_token_by_token_gives_the_same_bits(
    library: Library, length: int
) -> None:
    """NUM-43: a row alone, among others, from a cache, or padded on the right."""
    case = Case(heads=6, key_heads=2, queries=600, keys=600, width=16, value_width=16)
    q, k, v, _ = tensors(case)
    isa = library.isas()[0]
    seeing_all, causal = AttentionOptions(scale=0.25), AttentionOptions(scale=0.25, causal=True)
    whole = library.attention_forward(isa, 2, q, k, v, options=causal)
    last = slice(length - 1, length)
    cache = k[:, :, :length], v[:, :, :length]
    alone = library.attention_forward(
        library.isas()[-1], 1, q[:, :, last], *cache, options=seeing_all
    )
    assert same_bits(alone, np.ascontiguousarray(whole[:, :, last])), "token by token"
    start = [x[:, :, :length] for x in (q, k, v)]
    prefix = library.attention_forward(isa, 1, *start, options=causal)
    assert same_bits(prefix, np.ascontiguousarray(whole[:, :, :length])), "without what follows"
    padding = np.zeros((1, 1, 1, 600), np.float32)
    padding[..., length:] = -np.inf
    padded = library.attention_forward(
        isa, 1, q[:, :, last], k, v, options=AttentionOptions(scale=0.25, mask=padding)
    )
    assert same_bits(padded, alone), "padded on the right"
