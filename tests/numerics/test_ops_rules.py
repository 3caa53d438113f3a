"""Single operators against the words of spec/numerics.md, written out with other operators."""

import math

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("kernels")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(found.view(torch.int32), expected.contiguous().view(torch.int32))


class TestScaledProducts:
    """NUM-12: with alpha other than 1 t becomes alpha · t, then beta · c is added."""

    A, B, C = numbers(7, 300), numbers(300, 5, seed=1), numbers(7, 5, seed=2)

    @pytest.mark.parametrize("alpha", [1.0, 0.3, -2.0])
    @pytest.mark.parametrize("beta", [1.0, 0.7])
    def test_addmm_rounds_each_product_and_sum(self, alpha, beta):
        product = torch.mm(self.A, self.B)
        scaled = product if alpha == 1 else product * alpha
        added = self.C if beta == 1 else self.C * beta
        found = torch.addmm(self.C, self.A, self.B, beta=beta, alpha=alpha)
        assert same(found, scaled + added)

    def test_with_beta_0_what_is_added_is_not_read(self):
        hidden = torch.full((7, 5), float("nan"))
        assert same(torch.addmm(hidden, self.A, self.B, beta=0), torch.mm(self.A, self.B))

    def test_baddbmm_is_addmm_of_each_matrix(self):
        a, b, c = (torch.stack([x, -x]) for x in (self.A, self.B, self.C))
        found = torch.baddbmm(c, a, b, beta=0.7, alpha=0.3)
        for number in range(2):
            alone = torch.addmm(c[number], a[number], b[number], beta=0.7, alpha=0.3)
            assert same(found[number], alone)

    def test_a_bias_is_added_like_c_with_beta_1(self):
        bias = numbers(5, seed=3)
        found = torch.nn.functional.linear(self.A, self.B.t().contiguous(), bias)
        assert same(found, torch.mm(self.A, self.B) + bias)


def test_every_product_is_the_same_product():
    """NUM-13: mv, dot, linear, bmm, matmul are GEMM."""
    a, b = numbers(6, 520), numbers(520, 4, seed=1)
    product = torch.mm(a, b)
    assert same(torch.matmul(a, b), product)
    assert same(torch.bmm(a[None], b[None])[0], product)
    assert same(torch.nn.functional.linear(a, b.t()), product)
    assert same(torch.mv(a, b[:, 1]), product[:, 1])
    assert same(torch.dot(a[2], b[:, 3]), product[2, 3])


class TestLoss:
    """NUM-36: the terms -x[target], +0 where ignored, their SUM, divided for the mean."""

    X, TARGET = numbers(9, 11), torch.tensor([3, 0, -100, 10, 5, 5, -100, 1, 2])

    @property
    def terms(self):
        kept = self.TARGET >= 0
        found = torch.zeros(9)
        found[kept] = -self.X[kept, self.TARGET[kept]]
        return found

    def test_the_sum_and_the_mean(self):
        loss = torch.nn.functional.nll_loss
        assert same(loss(self.X, self.TARGET, reduction="none"), self.terms)
        assert same(loss(self.X, self.TARGET, reduction="sum"), self.terms.sum())
        assert same(loss(self.X, self.TARGET), self.terms.sum() / 7)

    def test_the_gradient_is_at_the_targets_alone(self):
        x = self.X.clone().requires_grad_()
        torch.nn.functional.nll_loss(x, self.TARGET).backward()
        expected = torch.zeros(9, 11)
        kept = self.TARGET >= 0
        expected[kept, self.TARGET[kept]] = -(torch.tensor(1.0) / 7)
        assert same(x.grad, expected)


class TestGathering:
    """NUM-37: adding at an index adds in ascending order of the source position."""

    INDEX = torch.tensor([2, 0, 2, 2, 1, 0, 2])
    SOURCE = numbers(7, 3) * torch.tensor([1e8, 1, -1e8, 1e-3, 1, 3, 7])[:, None]

    @property
    def expected(self):
        found = torch.zeros(4, 3)
        for position, row in enumerate(self.INDEX):
            found[row] = found[row] + self.SOURCE[position]
        return found

    def test_index_add(self):
        assert same(torch.zeros(4, 3).index_add(0, self.INDEX, self.SOURCE), self.expected)

    def test_index_put_with_accumulate(self):
        found = torch.zeros(4, 3).index_put((self.INDEX,), self.SOURCE, accumulate=True)
        assert same(found, self.expected)

    def test_scatter_add(self):
        index = self.INDEX[:, None].expand(7, 3)
        assert same(torch.zeros(4, 3).scatter_add(0, index, self.SOURCE), self.expected)

    def test_the_gradient_of_an_embedding(self):
        table = torch.zeros(4, 3, requires_grad=True)
        torch.nn.functional.embedding(self.INDEX, table).backward(self.SOURCE)
        assert same(table.grad, self.expected)


def test_the_scale_of_attention_does_not_depend_on_the_c_librarys_power():
    """NUM-55: models write `head_size ** -0.5`; four neighbours of it round to one binary32."""
    for size in range(1, 1 << 16):
        below = above = size**-0.5
        for _ in range(4):
            below, above = math.nextafter(below, 0.0), math.nextafter(above, 2.0)
        assert np.float32(below) == np.float32(above)
