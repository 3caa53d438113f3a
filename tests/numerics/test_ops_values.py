"""The portable operators against PyTorch's own, and their variants against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kolm_build.numerics import portable
from tests.numerics.operations import (
    BINARY,
    CALLS,
    GRADIENTS,
    UNARY,
    Operands,
    gradients,
    operands,
    stock_kernels,
)

pytestmark = pytest.mark.usefixtures("kernels")
REDUCED = (torch.bfloat16, torch.float16)
COMPOSED = ("lerp_of_tensors", "prod", "pow_of_a_number")
"""Calls of several operations, each with a rounding of its own."""


@pytest.fixture(scope="module")
def inputs() -> Operands:
    return operands()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in shape, dtype and every bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits = (x.detach().reshape(-1).contiguous().view(torch.uint8) for x in (a, b))
    return torch.equal(*bits)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the larger of the element and the tensor's mean."""
    ours, exact = a.detach().double().numpy(), b.detach().numpy()
    scale = np.abs(exact) + np.abs(exact).mean() + 1e-30
    return float((np.abs(ours - exact) / scale).max())


class TestTheValuesAreStocks:
    """Another order of rounding, the same mathematics."""

    @pytest.mark.parametrize("name", CALLS)
    def test_a_result_is_near_the_float64_result_of_stock_kernels(self, name, inputs):
        ours = CALLS[name](inputs)
        with stock_kernels():
            exact = CALLS[name](inputs.to(torch.float64))
        assert ours.shape == exact.shape
        assert relative_error(ours, exact) < 2e-6

    @pytest.mark.parametrize("name", GRADIENTS)
    def test_a_gradient_is_near_the_float64_gradient_of_stock_kernels(self, name, inputs):
        ours = gradients(GRADIENTS[name], inputs)
        with stock_kernels():
            exact = gradients(GRADIENTS[name], inputs.to(torch.float64))
        assert ours.keys() == exact.keys()
        assert ours
        for leaf, gradient in ours.items():
            assert relative_error(gradient, exact[leaf]) < 5e-5, leaf

    def test_indices_of_the_largest_are_stocks(self, inputs):
        ours = inputs.x.max(1).indices, inputs.x.argmax(), inputs.x.topk(5).indices
        with stock_kernels():
            stock = inputs.x.max(1).indices, inputs.x.argmax(), inputs.x.topk(5).indices
        assert all(torch.equal(a, b) for a, b in zip(ours, stock, strict=True))


class TestStorageFormats:
    """NUM-4: operands widen exactly, the operation is binary32, its result is rounded once."""

    @pytest.mark.parametrize("dtype", REDUCED)
    @pytest.mark.parametrize("name", [name for name in CALLS if name not in COMPOSED])
    def test_a_result_is_the_binary32_result_rounded_once(self, name, dtype, inputs):
        reduced = inputs.to(dtype)
        result = CALLS[name](reduced)
        wide = CALLS[name](reduced.to(torch.float32))
        assert result.dtype == dtype
        assert same_bits(result, wide.to(dtype))

    @pytest.mark.parametrize("dtype", REDUCED)
    def test_a_product_with_its_operands_in_another_order_in_memory_is_the_same(
        self, dtype, inputs
    ):
        left, right = inputs.left.to(dtype), inputs.right.to(dtype)
        strided = left.t().contiguous().t() @ right.t().contiguous().t()
        assert same_bits(left @ right, strided)


class TestLayout:
    """Strides, broadcasting and the split of the work change no bit."""

    @pytest.mark.parametrize("name", CALLS)
    def test_strided_operands_give_the_same_bits(self, name, inputs):
        def spread(x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x, x], dim=-1)[..., 1]

        def transposed(x: torch.Tensor) -> torch.Tensor:
            return x.mT.contiguous().mT if x.dim() > 1 else x

        expected = CALLS[name](inputs)
        for change in (spread, transposed):
            assert same_bits(CALLS[name](inputs.map(change)), expected)

    @pytest.mark.parametrize("name", CALLS)
    def test_threads_and_instruction_sets_give_the_same_bits(self, name, inputs):
        results = []
        for isa in portable.isas():
            for threads in (1, 2):
                portable.set_isa(isa)
                torch.set_num_threads(threads)
                results.append(CALLS[name](inputs))
        assert len(results) >= 2
        assert all(same_bits(results[0], result) for result in results)

    @pytest.mark.parametrize("name", GRADIENTS)
    def test_gradients_are_the_same_on_threads_and_instruction_sets(self, name, inputs):
        results = []
        for isa in portable.isas():
            for threads in (1, 2):
                portable.set_isa(isa)
                torch.set_num_threads(threads)
                results.append(gradients(GRADIENTS[name], inputs))
        for result in results:
            assert all(same_bits(result[leaf], results[0][leaf]) for leaf in result)

    def test_a_long_sum_is_the_same_on_two_threads(self):
        x = torch.linspace(-1, 3, 1_000_003)
        sums = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sums.append((x.sum(), x.norm(), x.view(1, 1, -1).sum((0, 2)), x.mean()))
        assert all(same_bits(a, b) for a, b in zip(*sums, strict=True))

    @pytest.mark.parametrize("shape", [(3, 5, 7), (1, 4099), (4099, 3), (2, 3, 4, 5)])
    def test_a_sum_does_not_depend_on_the_order_of_dimensions_in_memory(self, shape):
        x = torch.linspace(-3, 5, torch.Size(shape).numel()).reshape(shape)
        for dims in [(0,), (1,), (0, 1), tuple(range(len(shape)))]:
            forward = list(range(len(shape)))
            for order in (forward, forward[::-1]):
                inverse = [order.index(d) for d in range(len(shape))]
                other = x.permute(order).contiguous().permute(inverse)
                assert same_bits(other.sum(dims), x.sum(dims))


class TestVariants:
    """Functional, in-place and out forms give the same bits."""

    @pytest.mark.parametrize("name", ["exp", "tanh", "sqrt", "sigmoid", "log", "cos", "rsqrt"])
    def test_functions(self, name, inputs):
        expected = getattr(torch, name)(inputs.positive)
        in_place = getattr(inputs.positive.clone(), f"{name}_")()
        out = torch.empty(0)
        getattr(torch, name)(inputs.positive, out=out)
        assert same_bits(in_place, expected)
        assert same_bits(out, expected)

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("add", {"alpha": 0.1}),
            ("sub", {"alpha": 0.3}),
            ("mul", {}),
            ("div", {}),
            ("pow", {}),
            ("lerp", {"weight": 0.7}),
        ],
    )
    def test_functions_of_two_tensors(self, name, arguments, inputs):
        x, y = inputs.positive, inputs.y
        expected = getattr(torch, name)(x, y, **arguments)
        in_place = getattr(x.clone(), f"{name}_")(y, **arguments)
        out = torch.empty(0)
        getattr(torch, name)(x, y, **arguments, out=out)
        assert same_bits(in_place, expected)
        assert same_bits(out, expected)

    @pytest.mark.parametrize("name", ["addcmul", "addcdiv"])
    def test_functions_of_three_tensors(self, name, inputs):
        arguments = (inputs.y, inputs.positive)
        expected = getattr(torch, name)(inputs.x, *arguments, value=0.3)
        in_place = getattr(inputs.x.clone(), f"{name}_")(*arguments, value=0.3)
        out = torch.empty(0)
        getattr(torch, name)(inputs.x, *arguments, value=0.3, out=out)
        assert same_bits(in_place, expected)
        assert same_bits(out, expected)

    def test_products_and_sums(self, inputs):
        left, right, row = inputs.left, inputs.right, inputs.row[:70]
        out = torch.empty(0)
        assert same_bits(torch.mm(left, right, out=out), left @ right)
        expected = torch.addmm(row, left, right)
        assert same_bits(torch.addmm(row, left, right, out=torch.empty(0)), expected)
        assert same_bits(row.expand(13, 70).clone().addmm_(left, right), expected)
        assert same_bits(torch.sum(left, 0, out=torch.empty(0)), left.sum(0))
        assert same_bits(torch.cumsum(left, 0, out=torch.empty(0)), left.cumsum(0))
        assert same_bits(left.clone().cumsum_(0), left.cumsum(0))

    def test_a_list_of_tensors_is_a_loop_over_them(self, inputs):
        tensors, others = [inputs.x, inputs.positive], [inputs.y, inputs.x]
        for name, arguments in {
            "_foreach_add": (others,),
            "_foreach_mul": (0.3,),
            "_foreach_lerp": (others, 0.1),
            "_foreach_addcmul": (others, others, 0.1),
        }.items():
            results = getattr(torch, name)(tensors, *arguments)
            operation = getattr(torch, name.removeprefix("_foreach_"))
            for i, result in enumerate(results):
                own = [a[i] if isinstance(a, list) else a for a in arguments]
                if name == "_foreach_addcmul":
                    single = operation(tensors[i], own[0], own[1], value=own[2])
                else:
                    single = operation(tensors[i], *own)
                assert same_bits(result, single), name
        norms = torch._foreach_norm(tensors)
        assert all(same_bits(norm, x.norm()) for norm, x in zip(norms, tensors, strict=True))


class TestEdges:
    """Nothing, one thing, and numbers that are none."""

    @pytest.mark.parametrize("name", UNARY)
    def test_functions_of_nothing_and_of_one_number(self, name, inputs):
        shapes = (0,), (0, 4), ()
        for shape in shapes:
            x = torch.full(shape, 0.75)
            small = Operands(**{**vars(inputs), "x": x, "positive": x})
            assert UNARY[name](small).shape == torch.Size(shape)

    def test_sums_and_products_of_nothing(self):
        assert torch.empty(0).sum() == 0
        assert torch.empty(0, 3).sum(0).tolist() == [0, 0, 0]
        assert (torch.empty(2, 0) @ torch.empty(0, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
        assert (torch.empty(0, 4) @ torch.empty(4, 3)).shape == (0, 3)
        assert torch.addmm(torch.ones(3), torch.empty(2, 0), torch.empty(0, 3)).tolist() == [
            [1, 1, 1],
            [1, 1, 1],
        ]
        assert torch.empty(0, 5).softmax(-1).shape == (0, 5)

    def test_a_tie_of_zeros_is_plus_zero(self):
        """spec/numerics.md, NUM-25."""
        zeros = torch.tensor([-0.0, 0.0, -0.0])
        for value in (
            zeros.max(),
            zeros.min(),
            zeros.amax(0),
            zeros.amin(0),
            zeros.max(0).values,
            torch.maximum(zeros, -zeros)[0],
            torch.minimum(zeros, -zeros)[0],
        ):
            assert value.view(torch.int32).item() == 0
        assert zeros.max(0).indices == 0
        many = torch.full((37,), -0.0)
        clamped = many.clamp(min=-many, max=torch.ones(37))
        assert clamped.view(torch.int32).tolist() == [0] * 37
        assert zeros.argmin() == 0

    def test_nan_wins_and_has_one_pattern(self):
        """spec/numerics.md, NUM-5 and NUM-25."""
        odd = torch.tensor([0x7FC12345, 0x3F800000], dtype=torch.int32).view(torch.float32)
        plain = 0x7FC00000
        for value in (odd.max(), odd.min(), odd.sum(), torch.maximum(odd, odd.flip(0))[1]):
            assert value.view(torch.int32).item() == plain
        assert odd.argmax() == 0

    def test_sorting_is_stable_and_zeros_are_equal(self):
        """spec/numerics.md, NUM-70."""
        x = torch.tensor([0.0, float("nan"), -0.0, 1.0, float("nan"), -float("inf"), 0.0])
        assert x.argsort(stable=True).tolist() == [5, 0, 2, 6, 3, 1, 4]
        assert x.argsort(descending=True).tolist() == [1, 4, 3, 0, 2, 6, 5]
        assert x.topk(4).indices.tolist() == [1, 4, 3, 0]

    def test_integers_are_exact(self):
        """spec/numerics.md, NUM-26."""
        n = torch.arange(2**62, 2**62 + 5)
        assert n.sum().item() == (5 * 2**62 + 10) - 2**64
        assert torch.arange(5).cumsum(0).tolist() == [0, 1, 3, 6, 10]
        assert torch.tensor([True, True, False]).sum() == 2


class TestRefusals:
    """An operand that the class does not certify is refused, with one clear sentence."""

    @pytest.mark.parametrize(
        ("name", "call"),
        [
            ("exp", lambda x: x.exp()),
            ("mm", lambda x: x @ x),
            ("sum", lambda x: x.sum()),
            ("_softmax", lambda x: x.softmax(-1)),
            ("addcmul", lambda x: torch.addcmul(x, x, x)),
            ("normal_", lambda x: x.normal_()),
        ],
    )
    def test_float64_is_refused_by_name(self, name, call):
        with pytest.raises(RuntimeError) as refusal:
            call(torch.ones(2, 2, dtype=torch.float64))
        message = str(refusal.value)
        assert message.startswith(f"{portable.REFUSAL}aten::{name} is not certified for Double")
        assert "[2, 2]" in message

    def test_comparing_and_rounding_once_is_certified_for_float64(self):
        x = torch.tensor([3.0, 1.0], dtype=torch.float64)
        assert x.max() == 3
        assert (x + x).tolist() == [6, 2]
        assert x.sort().values.tolist() == [1, 3]

    def test_arguments_that_are_not_certified_are_refused(self):
        x = torch.ones(3)
        for call in (
            lambda: torch.nn.functional.softplus(x, beta=2),
            lambda: torch.linalg.vector_norm(x, 3),
            lambda: torch.ones(3).scatter_reduce(0, torch.tensor([0]), x, "prod"),
        ):
            with pytest.raises(RuntimeError, match=f"^{portable.REFUSAL}"):
                call()


def test_every_binary_call_reads_two_operands(inputs):
    assert all(BINARY[name](inputs).shape == inputs.x.shape for name in BINARY)
