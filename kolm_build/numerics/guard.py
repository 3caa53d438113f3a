"""The guard of portable-1: what is not certified fails (spec/numerics.md, NUM-90 to NUM-99).

Simple case first: ``with activate(): train()``. Within, every operation outside the table raises
`UncertifiedOperatorError`, and the switches that let PyTorch choose other kernels are held. At the
start, after every step of an optimiser and at the end the switches, the kernels and the floating
point environment of every thread are checked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._mode_utils import no_dispatch

from kolm_build.errors import (
    FloatingPointEnvironmentError,
    NotFiniteError,
    UncertifiedOperatorError,
    UncertifiedSettingError,
    UsageError,
)
from kolm_build.numerics import certified, portable, registrations
from kolm_build.numerics.refusal import Refusal

_COMPILER = "torch._dynamo"


@contextmanager
def activate(*, without: Sequence[str] = (), own_code: bool = False) -> Iterator[None]:
    """Compute as `portable-1` inside the block: portable kernels, and no others.

    Args:
        without: Operations whose portable kernels are left out, PyTorch's own in their place; for
            tests and demonstrations, since the result is then not portable.
        own_code: Whether the block runs code of this project alone. PyTorch's compiler, a second of
            imports, is then not loaded so that it can be held; loading it brings operations, which
            ends the block like any others.

    Raises:
        UncertifiedOperatorError: The block called an operation that is not certified, or a library
            brought operations, kernels or a compiler after the guard was there.
        UncertifiedSettingError: A switch was moved inside the block.
        FloatingPointEnvironmentError: A thread's rounding or treatment of small numbers is off.
    """
    if not own_code:
        import_module(_COMPILER)
    with ExitStack() as stack:
        stack.enter_context(held_switches())
        stack.enter_context(_portable(without))
        stack.enter_context(_no_compiler())
        check_floating_point()
        stack.enter_context(_installed())
        brought = stack.enter_context(registrations.noted())
        stack.enter_context(_steps_checked(brought))
        stack.enter_context(translated())
        yield
        check_kernels(brought)
        check_switches()
        check_floating_point()


@contextmanager
def _portable(without: Sequence[str]) -> Iterator[None]:
    """The portable kernels inside the block, but for those of `without`."""
    portable.load()
    was_active = portable.is_active()
    torch.ops.kolm_guard.remember(_overloads(without))
    portable.activate()
    try:
        yield
    finally:
        if not was_active:
            portable.deactivate()


def _overloads(names: Sequence[str]) -> Sequence[str]:
    """``mm``, ``mm_``, ``mm.out`` and the like of every name that a portable kernel has."""
    wanted = {name.removeprefix("aten::").removesuffix("_") for name in names}
    found = {
        name: name.removeprefix("aten::").partition(".")[0].removesuffix("_")
        for name in certified.names("replaced")
    }
    for name in wanted - set(found.values()):
        raise UsageError(f"no portable kernel computes {name!r}", where="without")
    return [name for name, base in found.items() if base in wanted]


@contextmanager
def translated() -> Iterator[None]:
    """Turn what a refusing kernel raises inside the block into `UncertifiedOperatorError`."""
    try:
        yield
    except RuntimeError as error:
        refusal = Refusal.parse(str(error))
        if refusal is None:
            raise
        raise refusal.to_error(error.__traceback__) from error


@contextmanager
def _installed() -> Iterator[None]:
    torch.ops.kolm_guard.install(
        list(certified.table()),
        [f"{name} {condition}" for name, condition in certified.conditional().items()],
    )
    try:
        yield
    finally:
        torch.ops.kolm_guard.release()


def check_kernels(brought: Sequence[str] = ()) -> None:
    """Refuse operations and kernels that came after the guard.

    Args:
        brought: What was registered since, also where it is there no more.

    Raises:
        UncertifiedOperatorError: There are some; what ran cannot be vouched for.
    """
    late = sorted({*torch.ops.kolm_guard.uncovered(), *brought})
    if late:
        raise UncertifiedOperatorError(
            "a library brought kernels while a portable build ran",
            expected="every library loaded before the build computes",
            actual=", ".join(late[:5]) + (f" and {len(late) - 5} more" if len(late) > 5 else ""),
            advice="Import the library at the top of the step.",
        )


@contextmanager
def _steps_checked(brought: Sequence[str]) -> Iterator[None]:
    """Check after every step of an optimiser inside the block (NUM-126).

    Args:
        brought: What was registered in Python since the block began; it grows.
    """
    loaded = _loaded()

    def check(*_of_the_step: object) -> None:
        nonlocal loaded
        check_switches()
        with no_dispatch():  # a log of the training's operations is not to hold the guard's
            _check_pool()
            if brought or loaded != _loaded():
                check_kernels(brought)
                loaded = _loaded()

    hook = register_optimizer_step_post_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _loaded() -> tuple[int, int]:
    """How much code there is: asking the dispatcher for its kernels takes milliseconds."""
    return len(sys.modules), len(torch.ops.loaded_libraries)


# ------------------------------------------------------------------------------------ switches


@dataclass(frozen=True, slots=True)
class Switch:
    """A setting of PyTorch that lets other kernels run than the dispatcher names.

    Attributes:
        name: Its name in PyTorch.
        read: Its value now.
        write: Sets it.
        wanted: Its value in a portable build.
    """

    name: str
    read: Callable[[], object]
    write: Callable[[Any], object]
    wanted: object


def _attribute(name: str, holder: object, attribute: str, *, wanted: object) -> Switch:
    return Switch(
        name=name,
        read=lambda: getattr(holder, attribute),
        write=lambda value: setattr(holder, attribute, value),
        wanted=wanted,
    )


def switches() -> Sequence[Switch]:
    """Every switch that is held."""
    # Among them torch.backends.cuda.matmul.allow_tf32, which the precision of products sets.
    backends = torch.backends
    return (
        Switch(
            "torch.use_deterministic_algorithms",
            torch.are_deterministic_algorithms_enabled,
            lambda mode: portable.set_deterministic(mode=mode),
            True,  # noqa: FBT003 -- the switch's value
        ),
        # NaN in new memory shows a kernel that reads what nobody wrote.
        _attribute(
            "torch.utils.deterministic.fill_uninitialized_memory",
            torch.utils.deterministic,
            "fill_uninitialized_memory",
            wanted=True,
        ),
        Switch(
            "torch.set_float32_matmul_precision",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
            "highest",
        ),
        Switch(
            "torch.backends.mkldnn.enabled",
            torch._C._get_mkldnn_enabled,  # noqa: SLF001 -- the module's own setter is read-only
            torch._C._set_mkldnn_enabled,  # noqa: SLF001
            False,  # noqa: FBT003
        ),
        _attribute(
            "torch.backends.opt_einsum.enabled", backends.opt_einsum, "enabled", wanted=False
        ),
        _attribute("torch.backends.cudnn.allow_tf32", backends.cudnn, "allow_tf32", wanted=False),
        _attribute("torch.backends.cudnn.benchmark", backends.cudnn, "benchmark", wanted=False),
        _attribute(
            "torch.backends.cudnn.deterministic", backends.cudnn, "deterministic", wanted=True
        ),
        Switch(
            "torch.jit fusion",
            torch._C._jit_texpr_fuser_enabled,  # noqa: SLF001
            torch._C._jit_set_texpr_fuser_enabled,  # noqa: SLF001
            False,  # noqa: FBT003
        ),
    )


@contextmanager
def held_switches() -> Iterator[None]:
    """Every switch as a portable build wants it inside the block, and as it was after it."""
    before = [(switch, switch.read()) for switch in switches()]
    try:
        for switch, _ in before:
            switch.write(switch.wanted)
        yield
    finally:
        for switch, value in before:
            switch.write(value)


def check_switches() -> None:
    """Refuse a switch that was moved.

    Raises:
        UncertifiedSettingError: It names the switch and its value.
    """
    for switch in switches():
        if switch.read() != switch.wanted:
            raise UncertifiedSettingError(
                "a switch was moved during a portable build",
                where=switch.name,
                expected=repr(switch.wanted),
                actual=repr(switch.read()),
                advice="Leave it as it is; the model's or the trainer's configuration may set it.",
            )


@contextmanager
def _no_compiler() -> Iterator[None]:
    """Refuse `torch.compile` inside the block; what was compiled before runs as it is written."""
    compile_before = torch.compile
    is_loaded = _COMPILER in sys.modules
    torch.compile = _refuse_to_compile
    try:
        with torch.compiler.set_stance("force_eager") if is_loaded else nullcontext():
            yield
    finally:
        torch.compile = compile_before


def _refuse_to_compile(*_arguments: object, **_options: object) -> NoReturn:
    raise UncertifiedOperatorError(
        "torch.compile is refused: it makes kernels of its own",
        where="torch.compile",
        advice="Leave compilation off in the model's and the trainer's configuration.",
    )


# ------------------------------------------------------------------------------------ numbers


def check_floating_point() -> None:
    """Check rounding and small numbers on every thread that may compute.

    Raises:
        FloatingPointEnvironmentError: It names the thread and what is set.
    """
    _check_pool()
    _refuse_trouble("the thread of the backward pass", _backward_trouble())


def _check_pool() -> None:
    """Check the threads of the pool, the caller's first: on the CPU it computes gradients too."""
    for number, trouble in enumerate(torch.ops.kolm_guard.floating_point_troubles()):
        _refuse_trouble(f"thread {number} of the pool", trouble)


def _refuse_trouble(thread: str, trouble: str) -> None:
    if trouble:
        raise FloatingPointEnvironmentError(
            "the floating point environment is not IEEE's default",
            where=thread,
            expected="rounding to nearest, subnormal numbers kept",
            actual=trouble,
            advice="A library compiled with -ffast-math, or torch.set_flush_denormal, sets it.",
        )


class _Probe(torch.autograd.Function):
    """Asks for the floating point environment where gradients are computed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, answers: list[str]) -> torch.Tensor:
        ctx.answers = answers
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.answers.append(torch.ops.kolm_guard.floating_point_trouble())
        return gradients[0], None


def _backward_trouble() -> str:
    answers: list[str] = []
    with torch.enable_grad():
        x = torch.zeros(1, requires_grad=True)
        _Probe.apply(x, answers).backward()  # a gradient given would import the compiler's shapes
    return answers[0]


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse NaN and infinities: a result that holds one ends the build (NUM-5).

    Args:
        tensors: What to check, by the name that an error shall give.

    Raises:
        NotFiniteError: It names the first tensor that has one, and the element's index.
    """
    for name, tensor in tensors.items():
        finite = torch.isfinite(tensor)
        if bool(finite.all()):
            continue
        index = (~finite).nonzero()[0].tolist()
        raise NotFiniteError(
            "a number is not finite",
            where=f"{name}[{', '.join(map(str, index))}]" if index else name,
            expected="a finite number",
            actual=str(tensor[tuple(index)].item()),
            advice="Lower the learning rate, clip gradients, or look for it in the data.",
        )
