"""Operations that PyTorch writes out above autograd: they touch no number themselves."""

import pytest
import torch

from kolm_build.numerics import certified, guard, portable
from tests.numerics import hollow

DECOMPOSED = certified.names("decomposed")


@pytest.fixture(scope="module", autouse=True)
def guarded():
    """The guard, without the checks around it."""
    portable.load()
    portable.activate()
    install()
    with guard.held_switches():
        yield
    torch.ops.kolm_guard.release()
    portable.deactivate()


def install() -> None:
    conditions = [f"{name} {condition}" for name, condition in certified.conditional().items()]
    torch.ops.kolm_guard.install(list(certified.table()), conditions)


X, ROW, INDEX = torch.arange(1.0, 17.0).view(4, 4) / 4, torch.arange(1.0, 5.0), torch.arange(4)
CELL = (X[:3], X[:3], X.repeat(4, 1)[:12], X.repeat(4, 1)[:12])
GATES = {"rnn_tanh": 4, "rnn_relu": 4, "gru": 12, "lstm": 16}


def state(name: str) -> object:
    return [X[None], X[None]] if name == "lstm" else X[None]


def weights(name: str) -> list[torch.Tensor]:
    many = X.repeat(4, 1)[: GATES[name]]
    return [many, many, many[:, 0].contiguous(), many[:, 1].contiguous()]


def layer(name: str) -> tuple[list[object], dict[str, object]]:
    settings = [True, 1, 0.0, False, False]
    return [X[None], state(name), weights(name), *settings, False], {}


GIVEN = {
    **{f"{name}.input": (lambda name=name: layer(name)) for name in GATES},
    "clip": lambda: ([X, 1, 2], {}),
    "clip_": lambda: ([X, 1, 2], {}),
    "clip.out": lambda: ([X, 1, 2], {"out": torch.empty(0)}),
    "clip.Tensor": lambda: ([X, ROW, ROW + 1], {}),
    "clip_.Tensor": lambda: ([X, ROW, ROW + 1], {}),
    "clip.Tensor_out": lambda: ([X, ROW, ROW + 1], {"out": torch.empty(0)}),
    "cosine_embedding_loss": lambda: ([X, X.flip(0), ROW.sign()], {}),
    "embedding_backward": lambda: ([X, INDEX, 5, -1, False, False], {}),
    "gather_backward": lambda: ([X, X, 0, INDEX.expand(4, 4), False], {}),
    "gru_cell": lambda: (list(CELL), {}),
    "index_select_backward": lambda: ([X, [6, 4], 0, INDEX], {}),
    "kl_div": lambda: ([X, X / 2], {"log_target": True}),
    "layer_norm": lambda: ([X, [4]], {}),
    "lstm_cell": lambda: ([X, [X, X], X.repeat(4, 1), X.repeat(4, 1)], {}),
    "narrow.Tensor": lambda: ([X, 0, torch.tensor(1), 2], {}),
    "nll_loss": lambda: ([X, INDEX], {}),
    "nll_loss.out": lambda: ([X, INDEX], {"out": torch.empty(0)}),
    "nll_loss_nd": lambda: ([X, INDEX], {}),
    "pad": lambda: ([X, [1, 2]], {}),
    "retain_grad": lambda: ([X.clone().requires_grad_()], {}),
    "rms_norm": lambda: ([X, [4]], {}),
    "unflatten_dense_tensors": lambda: ([X.flatten(), [ROW, X[:3]]], {}),
    "value_selecting_reduction_backward": lambda: ([ROW, 1, INDEX, [4, 4], False], {}),
}


def operator_of(name: str):
    full, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, full), overload or "default")


def arguments_of(name: str):
    """Arguments that the operation takes under the guard."""
    operator, errors = operator_of(name), [""]
    given = GIVEN.get(name.removeprefix("aten::"))
    for tried in [given()] if given else (one.call(operator) for one in hollow.worlds()):
        try:
            arguments = hollow.sized(operator, tried)
            hollow.run(operator, arguments, hide=False)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            errors.append(str(error).splitlines()[0])
        else:
            return arguments
    raise AssertionError(f"{name}: nothing to try it with: {errors[-1]}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DECOMPOSED)
def test_what_sees_only_shapes_gives_the_same_bits(name):
    """NUM-122: and it runs on certified operations alone (NUM-120)."""
    operator, arguments = operator_of(name), arguments_of(name)
    plain = hollow.run(operator, arguments, hide=False)
    assert hollow.equal(hollow.run(operator, arguments, hide=True), plain)


@pytest.mark.parametrize("name", ["aten::_reshape_from_tensor", "aten::tensor_split"])
def test_what_reads_the_numbers_itself_is_seen(name):
    """The test above can fail: these two look into a tensor, and the table has neither."""
    sizes = torch.tensor([2, 8])
    call = {
        "aten::_reshape_from_tensor": torch._reshape_from_tensor,
        "aten::tensor_split": torch.tensor_split,
    }[name]
    torch.ops.kolm_guard.release()
    try:
        call(X, sizes)
        with pytest.raises(RuntimeError, match="data is not allocated"):
            call(X, hollow.hollow(sizes))
    finally:
        install()
