"""Operations planted where a guard of CPU kernels alone would not look: all are refused."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kolm_build.errors import UncertifiedOperatorError
from kolm_build.numerics import guard, portable

pytestmark = pytest.mark.filterwarnings("ignore:Warning only once")

SPACE = "kolm_planted"
X = torch.ones(3)


def sine(x: torch.Tensor) -> torch.Tensor:
    """Arithmetic that PyTorch does not see."""
    return torch.from_numpy(x.detach().numpy() * math.sin(1.0))


def number(n: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(4 * n), dtype=torch.float32)


@pytest.fixture
def library():
    portable.load()
    with torch.library._scoped_library(SPACE, "FRAGMENT") as library:
        yield library


def planted(name: str):
    return getattr(getattr(torch.ops, SPACE), name)


def refused(name: str):
    return pytest.raises(UncertifiedOperatorError, match=f"{name} is refused: ")


KEYS = [
    "CompositeImplicitAutograd",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "Autograd",
    "AutogradCPU",
    "ADInplaceOrView",
    "BackendSelect",
    "CPU",
]


BELOW_AUTOGRAD = [key for key in KEYS if not key.startswith("A")]


@pytest.mark.parametrize(
    ("key", "inference"),
    [*((key, False) for key in KEYS), *((key, True) for key in BELOW_AUTOGRAD)],
)
def test_an_operation_of_a_library_is_refused_whatever_the_kind_of_its_kernel(
    library, key, inference
):
    """NUM-120: inference mode goes past autograd."""
    library.define("sine(Tensor x) -> Tensor")
    library.impl("sine", sine, key)
    with torch.inference_mode(mode=inference):
        x = torch.ones(3)
        assert planted("sine")(x)[0] == pytest.approx(math.sin(1.0))
        with refused(f"{SPACE}::sine"), guard.activate():
            planted("sine")(x)


@pytest.mark.parametrize("key", [*KEYS[:3], "BackendSelect"])
def test_an_operation_that_takes_no_tensor_is_refused(library, key):
    """NUM-120: it has no device."""
    library.define("number(int n) -> Tensor")
    library.impl("number", number, key)
    assert planted("number")(2).shape == (2,)
    with refused(f"{SPACE}::number"), guard.activate():
        planted("number")(2)


@pytest.mark.parametrize("arguments", ["Tensor? x", "Tensor[] x"])
def test_an_operation_that_may_have_no_tensor_is_refused(library, arguments):
    """NUM-120."""
    library.define(f"maybe({arguments}) -> Tensor")
    library.impl("maybe", lambda _x: number(1), "CompositeExplicitAutograd")
    for x in ([], [X]) if "[]" in arguments else (None, X):
        planted("maybe")(x)
        with refused(f"{SPACE}::maybe"), guard.activate():
            planted("maybe")(x)


def test_a_custom_operation_of_pytorch_is_refused():
    """NUM-120: torch.library.custom_op."""
    operator = torch.library.custom_op(f"{SPACE}::custom", sine, mutates_args=())
    operator.register_autograd(lambda _context, gradient: gradient)
    assert operator(X)[0] == pytest.approx(math.sin(1.0))
    for x in (X, torch.ones(3, requires_grad=True)):
        with refused(f"{SPACE}::custom"), guard.activate():
            operator(x)


def test_an_operation_for_a_tensor_class_alone_is_refused(library):
    """NUM-120: a kernel at the stage of Python."""
    library.define("own(Tensor x) -> Tensor")
    library.impl("own", lambda x: x.elem, "Python")
    with refused(f"{SPACE}::own"), guard.activate():
        planted("own")(Wrapped(X))


class Wrapped(torch.Tensor):
    """A tensor that holds another one."""

    @staticmethod
    def __new__(cls, elem):
        made = torch.Tensor._make_wrapper_subclass(cls, elem.shape, dtype=elem.dtype)
        made.elem = elem
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return NotImplemented


@pytest.mark.parametrize("space", ["profiler", "kolm_guard", "kolm_portable", "_test"])
def test_no_name_space_is_trusted_by_its_name(space):
    """NUM-120."""
    portable.load()
    with torch.library._scoped_library(space, "FRAGMENT") as library:
        library.define("planted(Tensor x) -> Tensor")
        library.impl("planted", sine, "CompositeExplicitAutograd")
        with refused(f"{space}::planted"), guard.activate():
            getattr(torch.ops, space).planted(X)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("_test::leaky_relu", lambda: torch.ops._test.leaky_relu(X, 0.1)),
        (
            "aten::fbgemm_linear_quantize_weight",
            lambda: torch.ops.aten.fbgemm_linear_quantize_weight(torch.ones(4, 4)),
        ),
        (
            "aten::fbgemm_pack_gemm_matrix_fp16",
            lambda: torch.ops.aten.fbgemm_pack_gemm_matrix_fp16(torch.ones(4, 4)),
        ),
        (
            "aten::choose_qparams_optimized",
            lambda: torch.choose_qparams_optimized(torch.ones(200), 200, 10, 0.16, 8),
        ),
        (
            "aten::_sobol_engine_draw",
            lambda: torch._sobol_engine_draw(
                torch.zeros(2).long(), 1, torch.zeros(2, 30).long(), 2, 0, dtype=torch.float32
            ),
        ),
        ("prims::sin", lambda: torch.ops.prims.sin(X)),
    ],
)
def test_an_operation_that_is_only_a_body_of_its_own_is_refused(name, call):
    """NUM-120: PyTorch's own."""
    with refused(name), guard.activate():
        call()


def test_a_tensor_without_data_is_not_computed_with(library):
    """NUM-120: the device meta; models are made on it before they have weights."""
    library.define("made(int n, *, Device device) -> Tensor")
    library.impl("made", lambda n, device: torch.empty(n, device=device), "BackendSelect")
    with guard.activate():
        assert torch.empty(3, device="meta").erfinv_().shape == (3,)
        assert planted("made")(3, device=torch.device("meta")).shape == (3,)
    with refused(f"{SPACE}::made"), guard.activate():
        planted("made")(3, device=torch.device("cpu"))


@pytest.mark.parametrize("key", ["BackendSelect", "CompositeExplicitAutograd"])
def test_data_that_is_said_to_be_none_is_refused(library, key):
    """NUM-120."""
    # Names of this test and key alone: what another test planted under one is nobody's concern.
    made, read = f"made_{key.lower()}", f"read_{key.lower()}"
    library.define(f"{made}(int n, *, Device device) -> Tensor")
    library.define(f"{read}(Tensor? x, *, Device device) -> Tensor")
    library.impl(made, lambda n, device: number(n), key)
    library.impl(read, lambda x, device: x.to(device), key)
    refusal = pytest.raises(
        UncertifiedOperatorError,
        # Which of the two is said depends on what was planted before in the process.
        match=f"{made} is refused: (it made data on the device meta|.* is not certified)",
    )
    with refusal, guard.activate():
        planted(made)(3, device=torch.device("meta"))
    with refused(f"{SPACE}::{read}"), guard.activate():
        planted(read)(X, device=torch.device("meta"))


@pytest.mark.parametrize("key", ["CPU", "AutogradCPU", "ADInplaceOrView"])
def test_another_librarys_kernel_over_pytorchs_own_is_refused(key):
    """NUM-121."""
    portable.load()
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("neg", sine, key, allow_override=True)
        assert X.neg()[0] == pytest.approx(math.sin(1.0))
        with pytest.raises(UncertifiedOperatorError) as caught, guard.activate():
            X.neg()
    assert caught.value.reason == (
        "aten::neg is refused: a library put a kernel of its own over PyTorch's"
    )


def test_another_librarys_body_over_pytorchs_is_refused():
    """NUM-121: above autograd."""
    portable.load()
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("square", sine, "CompositeImplicitAutograd", allow_override=True)
        with refused("aten::square"), guard.activate():
            X.square()


def test_a_fallback_for_operations_without_a_kernel_is_refused(library):
    """NUM-120: PyTorch has fallbacks of its own at every other stage, and takes no second."""
    library.define("bare(Tensor x) -> Tensor")
    with torch.library._scoped_library("_", "IMPL") as everywhere:
        everywhere.fallback(lambda _operator, x: sine(x), "CPU")
        assert planted("bare")(X)[0] == pytest.approx(math.sin(1.0))
        with refused(f"{SPACE}::bare"), guard.activate():
            planted("bare")(X)


def late_is_refused():
    return pytest.raises(UncertifiedOperatorError, match="brought kernels")


def pytorch():
    return torch.library._scoped_library("aten", "IMPL")


@pytest.mark.parametrize("key", [*KEYS, "Python", "FuncTorchBatched"])
def test_an_operation_that_comes_late_ends_the_build_whatever_its_kernel(library, key):
    """NUM-97."""
    library.define("late(Tensor x) -> Tensor")
    with late_is_refused() as caught, guard.activate():
        library.impl("late", sine, key)
    assert caught.value.actual == f"{SPACE}::late"


@pytest.mark.parametrize("key", ["CompositeImplicitAutograd", "AutogradCPU", "BackendSelect"])
def test_a_kernel_that_comes_late_to_pytorchs_operation_ends_the_build(key):
    """NUM-97."""
    with late_is_refused() as caught, guard.activate(), pytorch() as library:
        library.impl("square", sine, key, allow_override=True)
        guard.check_kernels()
    assert caught.value.actual == "aten::square"


def test_what_was_brought_late_and_taken_back_ends_the_build():
    """NUM-97."""
    scope = torch.library._scoped_library(SPACE, "FRAGMENT")
    with late_is_refused() as caught, guard.activate(), scope as library:
        library.define("late(Tensor x) -> Tensor")
        library.impl("late", sine, "CPU")
    assert caught.value.actual == f"{SPACE}::late"


def test_a_fallback_that_was_brought_late_and_taken_back_ends_the_build():
    """NUM-97."""
    scope = torch.library._scoped_library("_", "IMPL")
    with late_is_refused() as caught, guard.activate(), scope as library:
        library.fallback(lambda _operator, x: sine(x), "CPU")
    assert caught.value.actual == "fallback for CPU"


def test_what_comes_late_for_other_devices_is_allowed(library):
    """NUM-97: shapes alone, and other machines."""
    library.define("shapes(Tensor x) -> Tensor")
    with guard.activate():
        library.impl("shapes", lambda x: x.new_empty(3), "Meta")
        library.impl("shapes", lambda x: x, "CUDA")


def test_afterwards_every_planted_operation_runs_again(library):
    """NUM-99."""
    library.define("back(Tensor x) -> Tensor")
    library.impl("back", sine, "CompositeImplicitAutograd")
    before = torch._C._dispatch_dump_table(f"{SPACE}::back")
    with guard.activate():
        pass
    assert torch._C._dispatch_dump_table(f"{SPACE}::back") == before
    assert planted("back")(X)[0] == pytest.approx(math.sin(1.0))


LIBRARY = """
#include <ATen/ATen.h>
#include <torch/library.h>

at::Tensor sine(const at::Tensor& x) {
  at::Tensor y = at::empty_like(x);
  for (int64_t i = 0; i < x.numel(); ++i)
    y.mutable_data_ptr<float>()[i] = std::sin(x.const_data_ptr<float>()[i]);
  return y;
}

TORCH_LIBRARY(planted, m) {
  m.def("body(Tensor x) -> Tensor", &sine);
  m.def("any(Tensor x) -> Tensor",
        torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, &sine));
  m.def("above(Tensor x) -> Tensor", torch::dispatch(c10::DispatchKey::Autograd, &sine));
}
TORCH_LIBRARY_IMPL(aten, AutogradCPU, m) { m.impl("square", &sine); }
TORCH_LIBRARY_IMPL(aten, CPU, m) { m.impl("neg", &sine); }
"""

LOADED = """
import sys, torch
from kolm_build.errors import UncertifiedOperatorError
from kolm_build.numerics import guard
x = torch.ones(2)
calls = {
    "planted::body": lambda: torch.ops.planted.body(x),
    "planted::any": lambda: torch.ops.planted.any(x),
    "planted::above": lambda: torch.ops.planted.above(x),
    "aten::square": x.square,
    "aten::neg": x.neg,
}
try:
    with guard.activate():
        torch.ops.load_library(sys.argv[1])
        assert torch.ops.planted.body(x)[0] != 1
except UncertifiedOperatorError as error:
    print(error.actual)
for name, call in calls.items():
    try:
        with guard.activate():
            call()
    except UncertifiedOperatorError as error:
        print(error.reason)
print(float(x.square()[0]) < 0.9)
"""


def test_a_compiled_library_is_refused_late_and_early(tmp_path):
    """NUM-97, NUM-120, NUM-121: from a folder that is called as PyTorch calls its own."""
    torch_folder = Path(torch.__file__).parent
    source = tmp_path / "torch" / "csrc" / "planted.cpp"
    source.parent.mkdir(parents=True)
    source.write_text(LIBRARY)
    include = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    command = ["c++", "-std=c++20", "-O0", "-shared", "-fPIC", "-DNDEBUG", str(source)]
    command += [*(f"-I{one}" for one in include), f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
    command += ["-lc10", "-o", str(tmp_path / "planted.so")]
    subprocess.run(command, check=True)
    ran = [sys.executable, "-W", "ignore", "-c", LOADED, str(tmp_path / "planted.so")]
    done = subprocess.run(ran, capture_output=True, text=True, check=True)
    over = "a library put a kernel of its own over PyTorch's"
    assert done.stdout.splitlines() == [
        "aten::neg, aten::square, planted::above, planted::any, planted::body",
        "planted::body is refused: the operation is not certified",
        "planted::any is refused: the operation is not certified",
        "planted::above is refused: the operation is not certified",
        f"aten::square is refused: {over}",
        f"aten::neg is refused: {over}",
        "True",
    ]
