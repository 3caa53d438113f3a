"""MiniLLM: loss and gradient are those of the equations, draws those of a mixture."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core.fields import Fields
from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances
from kolm_build.numerics.kernels import LIBRARY
from tests.support.models import tiny_llama

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

WORDS, TOKENS = 3, 3
NUMBERS = np.random.default_rng(60)
STUDENT, TEACHER = (NUMBERS.normal(size=(5, 4)) for _ in range(2))
IDS = [2, 0, 3, 1, 1]


def logs(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def losses(student, ids, *, share=0.0, returns="mean", teacher=TEACHER):
    """What the step computes: losses of tokens, of logits of the student."""
    from kolm_build.steps.objectives.minillm import drawn_weights, token_losses

    q, t = torch.log_softmax(student, dim=-1), torch.log_softmax(torch.tensor(teacher), dim=-1)
    ids = torch.tensor(ids)
    return token_losses(q, t, ids, drawn_weights(q, t, ids, share), returns)


def by_hand(student, teacher, ids, share, returns):
    """Equation 7 in NumPy: the divergences, the returns, the weights and the gradient by logits."""
    q, t = logs(student), logs(teacher)
    reward = [t[place, word] - q[place, word] for place, word in enumerate(ids)]
    values, gradients = [], []
    for place, word in enumerate(ids):
        p, gap = np.exp(q[place]), q[place] - t[place]
        later = reward[place + 1 :]
        r = 0.0 if not later else np.mean(later) if returns == "mean" else np.sum(later)
        drawn_from = share * np.exp(t[place, word]) + (1 - share) * p[word]
        w = p[word] / drawn_from
        said = np.eye(len(p))[word]
        values.append(w * (p * gap).sum())
        gradients.append(w * (p * (gap - (p * gap).sum()) - r * (said - p)))
    return np.array(values), np.array(gradients)


@pytest.mark.parametrize("returns", ["mean", "sum"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_loss_and_gradient_are_those_of_equation_7(share, returns):
    """DIST-60: an independent computation, to 1e-6."""
    student = torch.tensor(STUDENT, requires_grad=True)
    found = losses(student, IDS, share=share, returns=returns)
    found.sum().backward()
    values, gradients = by_hand(STUDENT, TEACHER, IDS, share, returns)
    np.testing.assert_allclose(found.detach().numpy(), values, rtol=1e-6)
    np.testing.assert_allclose(student.grad.numpy(), gradients, rtol=1e-6, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    """DIST-60: of the loss with what is drawn, its weights and returns held."""
    student = torch.tensor(STUDENT, requires_grad=True)
    losses(student, IDS, share=0.4).sum().backward()
    q, t = logs(STUDENT), logs(TEACHER)
    rewards = [(t - q)[place, word] for place, word in enumerate(IDS)]
    later = [np.mean(rewards[place + 1 :]) for place in range(4)] + [0.0]
    w = [1 / (0.4 * np.exp((t - q)[place, word]) + 0.6) for place, word in enumerate(IDS)]

    def held(logits):
        now = logs(logits)
        parts = [
            w[at] * ((np.exp(now[at]) * (now[at] - t[at])).sum() - later[at] * now[at, word])
            for at, word in enumerate(IDS)
        ]
        return sum(parts)

    for place in np.ndindex(STUDENT.shape):
        nudge = np.zeros_like(STUDENT)
        nudge[place] = 1e-6
        slope = (held(STUDENT + nudge) - held(STUDENT - nudge)) / 2e-6
        assert student.grad[place].item() == pytest.approx(slope, abs=1e-7)


def tables(seed):
    """Logits of each token after each beginning: an autoregressive model as a table."""
    numbers = np.random.default_rng(seed)
    return [torch.tensor(numbers.normal(size=(WORDS,) * (n + 1))) for n in range(TOKENS)]


def along(model, answer):
    """The logits that a table gives at each token of `answer`, shape (tokens, words)."""
    return torch.stack([model[n][tuple(answer[:n])] for n in range(len(answer))])


def of_answer(model, answer):
    chances = torch.log_softmax(along(model, answer), dim=-1)
    return chances[torch.arange(len(answer)), list(answer)].sum()


def test_summed_returns_give_the_gradient_of_the_divergence_of_whole_answers():
    """DIST-60: in expectation, over every answer that there is; equations 2 and 3."""
    student, teacher = [one.requires_grad_() for one in tables(1)], tables(2)
    answers = list(product(range(WORDS), repeat=TOKENS))
    divergence = sum(
        torch.exp(of_answer(student, one)) * (of_answer(student, one) - of_answer(teacher, one))
        for one in answers
    )
    wanted = torch.autograd.grad(divergence, student)
    expected = sum(
        torch.exp(of_answer(student, one)).detach()
        * losses(
            along(student, one),
            one,
            returns="sum",
            teacher=along(teacher, one).numpy(),
        ).sum()
        for one in answers
    )
    for found, right in zip(torch.autograd.grad(expected, student), wanted, strict=True):
        torch.testing.assert_close(found, right)
    assert expected.item() == pytest.approx(divergence.item())


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_weights_make_good_at_a_token_that_the_teacher_took_part_in_the_draw(share):
    """DIST-61: of one token the expectation is the student's own."""
    student = torch.tensor(STUDENT[:1], requires_grad=True)
    drawn_from = share * np.exp(logs(TEACHER[:1])) + (1 - share) * np.exp(logs(STUDENT[:1]))
    total = sum(
        drawn_from[0, word] * losses(student, [word], share=share, teacher=TEACHER[:1]).sum()
        for word in range(4)
    )
    total.backward()
    value, gradient = by_hand(STUDENT[:1], TEACHER[:1], [0], 0.0, "mean")
    assert total.item() == pytest.approx(value[0])
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-6, atol=1e-12)


@given(st.lists(st.integers(0, 3), min_size=5, max_size=5), st.floats(0, 0.99))
def test_of_equal_models_nothing_is_to_learn_whatever_was_drawn(ids, share):
    """DIST-62."""
    student = torch.tensor(TEACHER, requires_grad=True)
    total = losses(student, ids, share=share).sum()
    total.backward()
    assert abs(total.item()) < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_without_the_teachers_share_every_token_counts_one():
    """DIST-62."""
    from kolm_build.steps.objectives.minillm import drawn_weights

    q, t = torch.tensor(logs(STUDENT)), torch.tensor(logs(TEACHER))
    assert drawn_weights(q, t, torch.tensor(IDS), 0.0).tolist() == [1.0] * 5


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9))
def test_a_return_is_of_the_later_tokens_alone(rewards):
    """DIST-60: the last token has none."""
    from kolm_build.steps.objectives.minillm import rewards_to_come

    sums, means = rewards_to_come(rewards, "sum"), rewards_to_come(rewards, "mean")
    assert sums[-1] == means[-1] == 0.0
    for place in range(len(rewards) - 1):
        later = rewards[place + 1 :]
        assert sums[place] == pytest.approx(sum(later), abs=1e-9)
        assert means[place] == pytest.approx(sum(later) / len(later), abs=1e-9)


def test_a_share_of_all_or_more_is_refused():
    """DIST-61: a weight would be without bounds."""
    from kolm_build.errors import InvalidRecordError
    from kolm_build.steps.objectives.minillm import TAKE

    with pytest.raises(InvalidRecordError, match="out of range"):
        TAKE(Fields({"teacher_mix": "1"}))


@pytest.fixture
def portable():
    """The arithmetic of portable-1, as a step has it."""
    from kolm_build.numerics.apply import applied

    if not LIBRARY.is_file():
        pytest.skip("the portable kernels are not compiled")
    circumstances = Circumstances(kernels=str(LIBRARY), threads=1)
    with applied(Numerics(cls="portable-1", seed=3), circumstances), torch.no_grad():
        yield


def test_draws_go_from_the_students_to_the_teachers(tmp_path, portable):
    """DIST-61, DIST-62: and do not depend on the others in their batch."""
    from kolm_build.runtime.loading import load
    from kolm_build.steps._rollouts import Sampler, Sampling

    student, teacher = (load(tiny_llama(tmp_path / name), dtype=torch.float32) for name in "ab")
    with torch.no_grad():
        for one in teacher.network.parameters():
            one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(7)) / 4)
    given = SimpleNamespace(
        model=student,
        request=SimpleNamespace(numerics=SimpleNamespace(cls="portable-1")),
        change=SimpleNamespace(caches=True),
    )
    sampler = Sampler(given, Sampling(generations=1, max_new_tokens=6, temperature=1.0, top_p=1.0))
    prompts = [
        student.chat.prompt_ids([{"role": "user", "content": text}]) for text in ("a", "what", "b")
    ]
    seeds = [3, 4, 5]

    def blended(share, other=teacher.network, rows=slice(None)):
        return sampler.draw_blended(student.network, other, prompts[rows], seeds[rows], share=share)

    own, others = (sampler.draw(one.network, prompts, seeds) for one in (student, teacher))
    assert own != others
    assert blended(0.0, other=None) == own
    assert blended(1.0) == others
    half = blended(0.5)
    assert half not in (own, others)
    assert [blended(0.5, rows=slice(at, at + 1))[0] for at in range(3)] == half
