"""What is added to a site's gradient is the gradient of what is minimised (FED-61)."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]


def added(mu, start, shift, network, gradient):
    from kolm_build.steps.federated._local import LocalAnswers

    return LocalAnswers(mu=mu, start=start, shift=shift).correct(network, gradient)


@pytest.fixture
def network():
    torch.manual_seed(3)
    return torch.nn.Linear(3, 2).double()


def flat(network):
    return torch.cat([one.detach().reshape(-1) for one in network.parameters()])


def test_the_terms_are_the_gradient_by_finite_differences(network):
    """FED-61: of mu/2 |w - w0|² + <shift, w>."""
    start = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    shift = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    w0 = torch.cat([start["weight"].reshape(-1), start["bias"]]).double()
    c = torch.cat([shift["weight"].reshape(-1), shift["bias"]]).double()

    def extra(w):
        return 0.7 / 2 * ((w - w0) ** 2).sum() + (c * w).sum()

    w, step = flat(network), 1e-6
    wanted = torch.stack(
        [
            (extra(w + step * one) - extra(w - step * one)) / (2 * step)
            for one in torch.eye(len(w), dtype=torch.float64)
        ]
    )
    found = added(0.7, start, shift, network, torch.zeros(8, dtype=torch.float64))
    assert torch.allclose(found, wanted, atol=1e-6)


def test_without_terms_the_gradient_is_left_alone(network):
    """FED-61."""
    gradient = torch.randn(8)
    assert added(0.0, {}, {}, network, gradient) is gradient


def test_a_parameter_that_a_shift_does_not_name_is_not_shifted(network):
    """FED-61."""
    gradient = torch.zeros(8)
    found = added(0.0, {}, {"bias": torch.ones(2)}, network, gradient)
    assert found.tolist() == [0] * 6 + [1, 1]
