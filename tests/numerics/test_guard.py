"""The guard: what is not certified fails, and says where it came from."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kolm_build.errors import (
    FloatingPointEnvironmentError,
    NotFiniteError,
    UncertifiedOperatorError,
    UncertifiedSettingError,
    UsageError,
)
from kolm_build.numerics import guard, portable
from kolm_build.numerics.refusal import Refusal
from tests.support.models import ROOT


class Bessel(torch.nn.Module):
    """A module with an operation that no table has."""

    def forward(self, x):
        return torch.special.i0e(x)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(4, 4)
        self.act_fn = Bessel()

    def forward(self, x):
        return self.act_fn(self.proj(x))


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), Block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_refusal_names_operation_dtypes_shapes_module_and_line():
    """NUM-94."""
    model = Tower()
    with pytest.raises(UncertifiedOperatorError) as caught, guard.activate():
        model(torch.ones(2, 4))
    error = caught.value
    assert error.code == "build.uncertified-operator"
    assert error.reason == "aten::special_i0e is refused: the operation is not certified"
    assert error.actual == "aten::special_i0e(self=float32[2, 4])"
    place, line = error.where.split(", ", 1)
    assert place == "layers.1.act_fn (Bessel)"
    assert line.startswith("tests/numerics/test_guard.py:")
    assert line.endswith("return torch.special.i0e(x)")


def test_a_refusal_in_a_backward_pass_names_the_autograd_node():
    """NUM-94: unfold is certified, its gradient is not."""
    x = torch.ones(8, requires_grad=True)
    with pytest.raises(UncertifiedOperatorError) as caught, guard.activate():
        x.unfold(0, 3, 1).mul(2).sum().backward()
    assert caught.value.reason.startswith("aten::unfold_backward is refused")
    assert "the gradient of UnfoldBackward0" in caught.value.where


def test_a_refusal_of_a_portable_kernel_is_told_the_same_way():
    """NUM-94: a dtype that the kernel does not have."""
    x = torch.ones(3, 3, dtype=torch.float64)
    with pytest.raises(UncertifiedOperatorError, match="aten::mm is refused"), guard.activate():
        x @ x


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="cannot multiply shapes") as caught, guard.activate():
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert Refusal.parse("something else") is None
    assert not isinstance(caught.value, UncertifiedOperatorError)


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.conv1d(torch.ones(1, 1, 9), torch.ones(1, 1, 3)),
        lambda: torch.linalg.svd(torch.ones(3, 3)),
        lambda: torch.linalg.inv(torch.eye(3)),
        lambda: torch.fft.fft(torch.ones(8)),
        lambda: torch.ones(3) * 1j,
        lambda: torch.ones(3, dtype=torch.complex64).abs(),
        lambda: torch.ones(3, dtype=torch.complex64) + 1,
        lambda: torch.tensor([7.0]) // 2,
        lambda: torch.tensor([7.0]) % 2,
        lambda: torch.ones(4).to_sparse(),
        lambda: torch.sparse_coo_tensor(torch.zeros(1, 2, dtype=torch.long), torch.ones(2), (3,)),
        lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        lambda: torch.ones(2, 2).to_mkldnn(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.ops.prims.cos(torch.ones(2)),
        lambda: torch.ops.quantized.mul(torch.ones(2), torch.ones(2), 1.0, 0),
        lambda: torch.nn.functional.gelu(torch.ones(2, dtype=torch.float64)),
        lambda: torch.logcumsumexp(torch.ones(3), 0),
    ],
)
def test_what_the_table_lacks_is_refused(call):
    """NUM-90, NUM-92, NUM-95."""
    with pytest.raises((UncertifiedOperatorError, NotImplementedError)), guard.activate():
        call()


def test_an_operation_in_place_and_one_with_out_are_refused_like_the_plain_one():
    """NUM-90."""
    x = torch.ones(3)
    for call in (x.acos, x.acos_, lambda: torch.acos(x, out=torch.empty(3))):
        with pytest.raises(UncertifiedOperatorError, match="aten::acos"), guard.activate():
            call()


def test_autocast_is_refused_where_it_would_cast():
    """NUM-95."""
    x = torch.ones(3, 3)
    with (
        pytest.raises(UncertifiedOperatorError, match="autocast is on"),
        guard.activate(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        x @ x


def test_autocast_that_is_off_is_allowed():
    x = torch.ones(3, 3)
    with guard.activate(), torch.autocast("cpu", enabled=False):
        assert (x @ x).sum() == 27


def bessel(x):
    return torch.special.i0e(x)


def test_compiling_is_refused_and_what_was_compiled_runs_as_it_is_written():
    """NUM-95."""
    compiled = torch.compile(bessel, backend="eager")
    with (
        pytest.raises(UncertifiedOperatorError, match=r"torch\.compile is refused"),
        guard.activate(),
    ):
        torch.compile(lambda x: x)
    with pytest.raises(UncertifiedOperatorError, match="aten::special_i0e"), guard.activate():
        compiled(torch.ones(2))


OWN_CODE = """
import sys
from kolm_build.errors import UncertifiedOperatorError
from kolm_build.numerics import guard

with guard.activate(own_code=True):
    pass
print("torch._dynamo" in sys.modules)
try:
    with guard.activate(own_code=True):
        import torch._dynamo
except UncertifiedOperatorError as error:
    print(error.code)
with guard.activate(own_code=True):
    print(torch.compiler.is_compiling(), torch._dynamo.eval_frame._stance.stance)
"""


def test_around_own_code_the_compiler_stays_away_and_must():
    """NUM-95: one that is there all the same is held."""
    done = subprocess.run(
        [sys.executable, "-c", OWN_CODE],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["False", "build.uncertified-operator", "False force_eager"]


@pytest.mark.parametrize("switch", guard.switches(), ids=lambda switch: switch.name)
def test_a_switch_is_held_and_moving_it_ends_the_build(switch):
    """NUM-95, NUM-96."""
    other = {"highest": "high", True: False, False: True}[switch.wanted]
    before = switch.read()
    with pytest.raises(UncertifiedSettingError) as caught, guard.activate():
        switch.write(other)
    assert caught.value.where == switch.name
    assert switch.read() == before


def test_every_switch_is_as_a_portable_build_wants_it():
    """NUM-95."""
    with guard.activate():
        found = {switch.name: switch.read() for switch in guard.switches()}
    assert found == {switch.name: switch.wanted for switch in guard.switches()}


def test_afterwards_pytorch_is_as_it_was():
    """NUM-99."""
    x = torch.linspace(-3, 3, 1001)
    before = (torch.special.i0e(x), torch.exp(x), torch.compile)
    values = [switch.read() for switch in guard.switches()]
    with guard.activate():
        torch.exp(x)
    assert torch.equal(torch.special.i0e(x), before[0])
    assert torch.equal(torch.exp(x), before[1])
    assert torch.compile is before[2]
    assert [switch.read() for switch in guard.switches()] == values
    assert not portable.is_active()


def test_kernels_that_were_portable_before_stay_so():
    portable.activate()
    with guard.activate():
        pass
    assert portable.is_active()
    portable.deactivate()


def late_operation() -> None:
    with torch.library._scoped_library("kolm_late", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CPU")


def late_kernel() -> None:
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("neg", lambda x: x, "CPU", allow_override=True)


@pytest.mark.filterwarnings("ignore:Warning only once")
@pytest.mark.parametrize(
    ("bring", "name"), [(late_operation, "kolm_late::twice"), (late_kernel, "aten::neg")]
)
def test_what_a_library_registers_late_ends_the_build(bring, name):
    """NUM-97: another operation, or another kernel of a certified one, though taken back again."""
    with (
        pytest.raises(UncertifiedOperatorError, match="brought kernels") as caught,
        guard.activate(),
    ):
        bring()
    assert caught.value.actual == name


@pytest.mark.parametrize(
    "new",
    [
        lambda dtype: torch.empty(5, dtype=dtype),
        lambda dtype: torch.empty_like(torch.ones(5, dtype=dtype)),
        lambda dtype: torch.ones(2, dtype=dtype).new_empty(5),
        lambda dtype: torch.empty_strided((5,), (2,), dtype=dtype),
        lambda dtype: torch.ones(0, dtype=dtype).resize_(5),
    ],
)
def test_new_memory_is_filled_with_what_shows(new):
    """NUM-125."""
    with guard.activate():
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            assert torch.isnan(new(dtype)).all()
        for dtype in (torch.int64, torch.int32, torch.uint8):
            assert (new(dtype) == torch.iinfo(dtype).max).all()


def test_a_result_that_rests_on_memory_that_nobody_wrote_ends_the_build():
    """NUM-5, NUM-125."""
    with guard.activate(), pytest.raises(NotFiniteError):
        guard.check_finite({"logits": torch.empty(4, 4) @ torch.ones(4, 4)})


def optimiser_step() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    torch.optim.AdamW([weight], fused=True).step()


@pytest.mark.parametrize("switch", guard.switches(), ids=lambda switch: switch.name)
def test_a_switch_that_was_moved_ends_the_build_with_the_optimisers_step(switch):
    """NUM-96, NUM-126: the check at the end would come too late."""
    other = {"highest": "high", True: False, False: True}[switch.wanted]
    with guard.activate():
        optimiser_step()
        switch.write(other)
        with pytest.raises(UncertifiedSettingError) as caught:
            optimiser_step()
        switch.write(switch.wanted)
    assert caught.value.where == switch.name


def test_small_numbers_flushed_to_zero_end_the_build_with_the_optimisers_step():
    """NUM-3, NUM-126."""
    with guard.activate():
        try:
            torch.set_flush_denormal(True)
            with pytest.raises(FloatingPointEnvironmentError) as caught:
                optimiser_step()
        finally:
            torch.set_flush_denormal(False)
    assert caught.value.where == "thread 0 of the pool"


@pytest.mark.filterwarnings("ignore:Warning only once")
def test_a_library_with_kernels_ends_the_build_with_the_optimisers_step(monkeypatch):
    """NUM-97, NUM-126: a library of compiled code registers without Python's knowledge."""
    with guard.activate():
        library = torch._C._dispatch_library("IMPL", "aten", "CPU", __file__, 1)
        library.impl("neg", "CPU", lambda x: x)
        monkeypatch.setitem(sys.modules, "late_library", sys)
        with pytest.raises(UncertifiedOperatorError, match="brought kernels") as caught:
            optimiser_step()
        library.reset()
    assert caught.value.actual == "aten::neg"


@pytest.mark.filterwarnings("ignore:Warning only once")
@pytest.mark.parametrize("bring", [late_operation, late_kernel])
def test_a_kernel_from_python_ends_the_build_with_the_optimisers_step(bring):
    """NUM-97, NUM-126: though it was taken back before the step."""
    reached = []

    def build() -> None:
        with guard.activate():
            bring()
            optimiser_step()
            reached.append("what follows the step")

    with pytest.raises(UncertifiedOperatorError, match="brought kernels"):
        build()
    assert reached == []


def test_the_number_of_threads_is_free():
    """NUM-105, NUM-126: another number changes no bit, and new threads are checked."""
    before = torch.get_num_threads()
    try:
        with guard.activate():
            x = torch.linspace(-3, 3, 200_001)
            one = torch.softmax(x, 0)
            torch.set_num_threads(2)
            optimiser_step()
            assert torch.equal(torch.softmax(x, 0), one)
    finally:
        torch.set_num_threads(before)


def test_a_log_of_operations_does_not_hold_the_guards_checks():
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names = []
    with guard.activate(), Names():
        optimiser_step()
    assert "aten._fused_adamw_.default" in names
    assert not [name for name in names if "kolm" in name]


def test_afterwards_an_optimiser_is_not_checked():
    """NUM-99."""
    with guard.activate():
        pass
    torch.use_deterministic_algorithms(False)
    optimiser_step()


@pytest.mark.parametrize("to", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_a_number_that_no_integer_holds_becomes_what_the_spec_says(to):
    """NUM-93."""
    values = [0.0, -0.9, 2.7, -2.7, 127.0, 300.5, -300.5, 1e10, 1e19, -1e19, float("nan")]
    values += [float("inf"), float("-inf")]
    with guard.activate():
        made = torch.tensor(values, dtype=torch.float64).to(to).tolist()
    assert made == [_integer(value, to) for value in values]


def _integer(value: float, to: torch.dtype) -> int:
    held = -(2.0**63) <= value < 2.0**63
    bits = 8 * to.itemsize
    low = (int(value) if held else -(2**63)) % 2**bits
    return low - 2**bits if to.is_signed and low >= 2 ** (bits - 1) else low


def test_ranges_are_computed_in_binary64_and_rounded_once():
    """NUM-56."""
    with guard.activate():
        steps = torch.arange(0.1, 2000.0, 0.3).tolist()
        line = torch.linspace(-1.0, 3.0, 1001).tolist()
    wanted = [0.1 + i * 0.3 for i in range(len(steps))]
    assert steps == torch.tensor(wanted, dtype=torch.float64).float().tolist()
    by = 4.0 / 1000
    wanted = [-1.0 + i * by if i < 500 else 3.0 - (1000 - i) * by for i in range(1001)]
    assert line == torch.tensor(wanted, dtype=torch.float64).float().tolist()


def test_leaving_a_kernel_out_brings_pytorchs_own_back():
    x = torch.rand(64, 512).exp()
    stock = torch.softmax(x, -1)
    with guard.activate():
        own = torch.softmax(x, -1)
    with guard.activate(without=["_softmax"]):
        assert torch.equal(torch.softmax(x, -1), stock)
    assert not torch.equal(own, stock)


def test_a_kernel_that_is_not_there_cannot_be_left_out():
    with (
        pytest.raises(UsageError, match="no portable kernel computes 'nonsense'"),
        guard.activate(without=["nonsense"]),
    ):
        pass


# ------------------------------------------------------------------------------------ numbers


def test_small_numbers_flushed_to_zero_are_refused_at_the_start_and_at_the_end():
    """NUM-3."""
    try:
        torch.set_flush_denormal(True)
        with pytest.raises(FloatingPointEnvironmentError) as caught:
            guard.check_floating_point()
        torch.set_flush_denormal(False)
        with pytest.raises(FloatingPointEnvironmentError), guard.activate():
            torch.set_flush_denormal(True)
    finally:
        torch.set_flush_denormal(False)
    assert caught.value.where == "thread 0 of the pool"
    assert caught.value.actual == "flush-to-zero is on, denormals-are-zero is on"


WORKER = """
import torch
torch.set_num_threads(2)
torch.set_flush_denormal(True)      # a worker of the pool starts with its maker's environment
torch.ones(1000000).add_(1)
torch.set_flush_denormal(False)
from kolm_build.errors import FloatingPointEnvironmentError
from kolm_build.numerics import guard, portable
portable.load()
try:
    guard.check_floating_point()
except FloatingPointEnvironmentError as error:
    print(error.where)
"""


def test_one_worker_that_flushes_small_numbers_is_found():
    """NUM-3."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER], capture_output=True, text=True, check=True
    )
    assert done.stdout == "thread 1 of the pool\n"


def test_a_number_that_is_not_finite_is_named_with_its_index():
    """NUM-5."""
    weights = {"good": torch.ones(3), "model.head.weight": torch.ones(2, 3)}
    guard.check_finite(weights)
    weights["model.head.weight"][1, 2] = float("nan")
    with pytest.raises(NotFiniteError) as caught:
        guard.check_finite(weights)
    assert (caught.value.where, caught.value.actual) == ("model.head.weight[1, 2]", "nan")
    with pytest.raises(NotFiniteError, match=r"loss"):
        guard.check_finite({"loss": torch.tensor(float("-inf"))})


def test_a_check_of_finite_numbers_is_certified_itself():
    with guard.activate():
        guard.check_finite({"loss": torch.tensor(1.0), "weight": torch.ones(3, 3)})
