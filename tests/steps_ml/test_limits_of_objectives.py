"""What every objective must be where the answer is known without computing."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kolm_build.steps._sequences import Continuation
from tests.steps_ml import policies
from tests.steps_ml.tables import HEAD, Reference, Tables, numbers_of, objective, token_logs
from tests.steps_ml.test_distillation import FORMULAS as DISTANCES
from tests.steps_ml.test_preference import (
    CHOSEN,
    CHOSEN_REFERENCE,
    REJECTED,
    REJECTED_REFERENCE,
    example,
)
from tests.steps_ml.whole_steps import ROWS, dpo_rows, log_s, pairs, shares_of, sides

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]


def side(policy, reference):
    from kolm_build.steps.objectives._pairs import Side

    one = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    return Side(policy=one, reference=torch.tensor(reference, dtype=torch.float64))


def both(row=0):
    """The sides of one row, as leaves."""
    return (
        side(CHOSEN[row], CHOSEN_REFERENCE[row]),
        side(REJECTED[row], REJECTED_REFERENCE[row]),
    )


def apart(won, lost):
    """Two answers of one token each, whose log ratios are `won` and `lost`."""
    return side([-3.0 + won], [-3.0]), side([-3.0 + lost], [-3.0])


def of(name, *pair, row=0, **params):
    return objective(name, **params).loss(*pair, example(row))


def gradients(loss, pair):
    return torch.autograd.grad(loss, [one.policy for one in pair])


def still(loss, pair):
    """Whether the loss moves neither answer."""
    return all(not one.any() for one in gradients(loss, pair))


# ---------------------------------------------------------------------------- preferences

SCALED = [
    "alphapo",
    "apo-down",
    "apo-zero",
    "bco-pair",
    "cdpo",
    "cpo",
    "discopop",
    "dpo",
    "dpop",
    "exo",
    "f-dpo",
    "ld-dpo",
    "lndpo",
    "nca",
    "odpo",
    "rdpo",
    "rpo",
    "rso",
    "simpo",
    "wpo",
]


@pytest.mark.parametrize("name", SCALED)
def test_a_scale_of_nothing_learns_nothing(name):
    """PREF-3: beta is 0; what is asked of the rows is then the same whatever the policy says."""
    pair = both()
    assert still(of(name, *pair, beta=0), pair)


@pytest.mark.parametrize("name", ["aot", "aot-unpaired"])
def test_sorted_values_without_a_scale_learn_nothing(name):
    """PREF-3."""
    for part in objective(name, beta=0).parts([both(0), both(1)]):
        assert (part.chosen, part.rejected) == (0, 0)


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("name", ["apo-zero-unpaired", "bco", "kto"])
def test_single_answers_without_a_scale_learn_nothing(name, good):
    """PREF-3."""
    ratio = torch.tensor(0.7, requires_grad=True)
    loss = objective(name, beta=0).loss(ratio, SimpleNamespace(good=good), torch.tensor(0.0))
    assert torch.autograd.grad(loss, ratio)[0].item() == 0


AT_FIRST = {
    "apo-down": 1,
    "bco-pair": 2 * math.log(2),
    "cdpo": math.log(2),
    "discopop": (math.log(2) + 1) / 2,
    "dpop": math.log(2),
    "exo": (math.log(0.5 / 0.9) + math.log(0.5 / 0.1)) / 2,
    "ld-dpo": math.log(2),
    "lndpo": math.log(2),
    "odpo": math.log(1 + math.exp(math.log(2.5))),
    "rdpo": math.log(2),
    "wpo": math.log(2),
}


@pytest.mark.parametrize("name", AT_FIRST)
def test_what_a_loss_is_of_the_reference_itself(name):
    """PREF-3: the policy is the reference."""
    pair = (side(CHOSEN[0], CHOSEN[0]), side(REJECTED[0], REJECTED[0]))
    params = {"alpha": 1} if name == "odpo" else {}
    params |= {"label_smoothing": 0.1} if name == "exo" else {}
    assert of(name, *pair, **params).item() == pytest.approx(AT_FIRST[name], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "params", "won", "lost"),
    [
        ("ipo", {"beta": 0.1}, 4.0, -1.0),
        ("sppo", {"beta": 0.1}, 5.0, -5.0),
        ("exo", {"beta": 0.5, "label_smoothing": 0.2}, math.log(4), -math.log(4)),
        ("rso", {"beta": 0.5}, 2.0, -0.5),
    ],
)
def test_where_a_pair_is_as_it_should_be_nothing_is_to_learn(name, params, won, lost):
    """PREF-3: a margin of 1/(2 beta); a win of 1 - e; a hinge that is open."""
    pair = apart(won, lost)
    loss = of(name, *pair, **params)
    assert abs(loss.item()) < 1e-12
    assert all(one.abs().max() < 1e-12 for one in gradients(loss, pair))


def test_a_likelihood_that_is_far_enough_ahead_learns_nothing_more():
    """PREF-3: SLiC's hinge, at its margin and beyond; before it the slope is 1."""
    ahead = (side([-0.5], [0.0]), side([-2.0], [0.0]))
    assert of("slic", *ahead, beta=1).item() == 0
    assert still(of("slic", *ahead, beta=1), ahead)
    near = (side([-0.5], [0.0]), side([-1.0], [0.0]))
    assert [one.item() for one in gradients(of("slic", *near, beta=1), near)] == [-1, 1]


def test_without_a_likelihood_cpo_is_dpo_whose_reference_is_indifferent():
    """PREF-3: the paper's own derivation."""
    pair = both()
    plain = [side(one[0], [0.0] * len(one[0])) for one in (CHOSEN, REJECTED)]
    found = of("cpo", *pair, beta=0.3, nll_weight=0)
    torch.testing.assert_close(found, of("dpo", *plain, beta=0.3))


def test_simpo_without_a_margin_is_dpo_by_length_without_a_reference():
    """PREF-3."""
    plain = [side(one[0], [0.0] * len(one[0])) for one in (CHOSEN, REJECTED)]
    found = of("simpo", *both(), beta=2, gamma=0)
    torch.testing.assert_close(found, of("lndpo", *plain, beta=2))


def test_of_answers_of_one_length_the_mean_is_a_smaller_scale():
    """PREF-3: lndpo with beta is dpo with beta over the length."""
    pair = (side(CHOSEN[0], CHOSEN_REFERENCE[0]), side([-1.0, -0.5, -2.0], [-1.5, -0.25, -1.0]))
    torch.testing.assert_close(of("lndpo", *pair, beta=0.75), of("dpo", *pair, beta=0.25))


def test_where_the_rejected_answer_stands_still_bco_pair_is_dpo():
    """PREF-3: and log 2."""
    pair = apart(0.8, 0.0)
    found = of("bco-pair", *pair, beta=0.3)
    assert found.item() == pytest.approx(of("dpo", *pair, beta=0.3).item() + math.log(2))


@pytest.mark.parametrize(("margin", "wanted"), [(-0.7, -log_s(-0.21)), (0.7, math.exp(-0.21))])
def test_a_sharp_mixture_is_logistic_below_and_exponential_above(margin, wanted):
    """PREF-3: DiscoPOP as tau goes to 0."""
    found = of("discopop", *apart(margin, 0.0), beta=0.3, tau=0.001)
    assert found.item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", ["aot", "aot-unpaired"])
def test_sorted_values_of_one_pair_are_dpo(name):
    """PREF-3: loss and gradient."""
    pair = both()
    (part,) = objective(name, beta=0.3).parts([pair])
    loss = of("dpo", *pair, beta=0.3)
    torch.testing.assert_close(part.loss, loss)
    for slope, gradient in zip((part.chosen, part.rejected), gradients(loss, pair), strict=True):
        torch.testing.assert_close(slope.expand(len(gradient)), gradient)


def single(name, ratio, good, **params):
    point = torch.zeros((), dtype=torch.float64)
    row = SimpleNamespace(good=good)
    return objective(name, **params).loss(torch.tensor(ratio).double(), row, point)


@pytest.mark.parametrize("ratio", [-2.0, 0.0, 0.3])
@pytest.mark.parametrize("good", [True, False])
def test_measured_from_nothing_kto_is_apo_zero_of_single_answers(ratio, good):
    """PREF-3."""
    found = single("kto", ratio, good, beta=0.3)
    torch.testing.assert_close(found, single("apo-zero-unpaired", ratio, good, beta=0.3))


@pytest.mark.parametrize(("one", "whole"), [("apo-zero-unpaired", "apo-zero"), ("bco", "bco-pair")])
def test_a_good_and_a_bad_answer_are_a_pair(one, whole):
    """PREF-3: measured from nothing."""
    both_alone = single(one, 0.8, True, beta=0.3) + single(one, -0.5, False, beta=0.3)
    torch.testing.assert_close(both_alone, of(whole, *apart(0.8, -0.5), beta=0.3))


def test_of_a_network_that_says_everything_alike_wpo_is_dpo():
    """PREF-3: the weights are 1."""
    network, reference = Tables(1), Tables(2)
    network.head.weight.data.zero_()
    losses = []
    for name in ("wpo", "dpo"):
        made = objective(name, beta=0.3)
        made.start(reference, pairs())
        losses.append(sum(one.loss.item() for one in shares_of(made, network, pairs())()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    wanted = np.mean(dpo_rows(numbers_of(network), numbers_of(reference)))
    assert losses[1] == pytest.approx(wanted, rel=1e-6)


# --------------------------------------------------------------------- answers and rewards


def step(name, network=None, examples=ROWS, *, teacher=None, **params):
    """The loss of a step, and its gradients by name."""
    network = network or Tables(1)
    made = objective(name, **params)
    if teacher is not None:
        made.teacher = SimpleNamespace(network=teacher)
    network.zero_grad()
    torch.manual_seed(0)
    loss = sum(one.loss for one in shares_of(made, network, examples)())
    loss.backward()
    kept = {at: one.grad.clone() for at, one in network.named_parameters() if one.grad is not None}
    return loss.item(), {at: one for at, one in kept.items() if one.any()}


def weighted(weight):
    from kolm_build.steps.objectives.weighted_sft import Weighted

    return [Weighted(sequence=one, weight=weight) for one in ROWS]


@pytest.mark.parametrize(
    ("name", "params", "scale"),
    [
        ("curriculum", {}, 1),
        ("dft", {}, 1 / 6),
        ("label-smoothing", {"smoothing": 0.3}, 1),
        ("neftune", {}, 1),
        ("seq-kd", {}, 1),
        ("sft", {}, 1),
        ("texts", {}, 1),
        ("weighted-sft", {}, 1),
    ],
)
def test_of_a_network_that_knows_nothing_a_loss_is_the_size_of_the_vocabulary(name, params, scale):
    """SFT-3: log 6; DFT's times the probability of a sixth."""
    network = Tables(1)
    network.head.weight.data.zero_()
    loss, _ = step(name, network, weighted(3.0) if name == "weighted-sft" else ROWS, **params)
    assert loss == pytest.approx(scale * math.log(6), rel=1e-6)


@pytest.mark.parametrize("name", ["curriculum", "seq-kd", "texts"])
def test_it_differs_from_fine_tuning_in_its_rows_alone(name):
    """ADPT-84, ADPT-85, DIST-89: bit for bit."""
    assert_same(step(name), step("sft"))


def assert_same(one, other):
    """Equal to the last bit, loss and gradients."""
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][at], other[1][at]) for at in one[1])


def test_of_tokens_that_are_sure_dft_is_fine_tuning():
    """ADPT-80: p is nearly 1."""
    network = Tables(1)
    rows = [Continuation(ids=(1, 4, 4), start=1)]
    network.embed.weight.data[:] = torch.eye(6, 4)
    network.embed.weight.data[4] = network.embed.weight.data[1]
    network.head.weight.data[4] += torch.tensor([0.0, 12.0, 0.0, 0.0])
    ours, theirs = (step(name, network, rows) for name in ("dft", "sft"))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    torch.testing.assert_close(ours[1][HEAD], theirs[1][HEAD], rtol=1e-4, atol=0)


def test_equal_rewards_are_a_coin():
    """RL-20, RL-21: log 2; and a step alone is an answer against one of reward 0."""
    from kolm_build.steps.objectives.prm import step_loss
    from kolm_build.steps.objectives.reward_bt import pair_loss

    one, nothing = torch.tensor(0.7), torch.tensor(0.0)
    assert pair_loss(one, one, 0.0, 0.0).item() == pytest.approx(math.log(2))
    assert step_loss(torch.zeros(3), [True, False, True]).item() == pytest.approx(math.log(2))
    for label, pair in ((True, (one, nothing)), (False, (nothing, one))):
        assert torch.equal(step_loss(one[None], [label]), pair_loss(*pair, 0.0, 0.0))


# ---------------------------------------------------------------------------- own answers


def test_looking_to_the_end_without_values_ppo_is_reinforce_pp():
    """RL-48: advantages with gamma and lambda of 1 and values of 0."""
    drawn = policies.rollouts(values=True)
    silent = [
        SimpleNamespace(
            completions=one.completions,
            rewards=one.rewards,
            old=one.old,
            reference=one.reference,
            values=tuple(value * 0 for value in one.values),
            tokens=one.tokens,
        )
        for one in drawn
    ]
    ours = objective("ppo", beta=0.2, gamma=1, gae_lambda=1).advantages(silent)
    theirs = objective("reinforce-pp", beta=0.2).advantages(drawn)
    for row, other in zip(ours, theirs, strict=True):
        for one, two in zip(row, other, strict=True):
            torch.testing.assert_close(one, two)


def test_where_every_answer_is_worth_the_same_reinforce_pp_learns_nothing():
    """RL-35: measured from the mean of the step; and ReMax from the greedy answer's worth."""
    drawn = policies.rollouts(([0.5, 0.5], [0.5, 0.5]), reference=False)
    for name in ("reinforce-pp", "remax"):
        made = objective(name, beta=0)
        made._baselines = [0.5, 0.5]
        _, found = policies.step_loss(made, drawn)
        assert all((one == 0).all() for one in found), name


def test_of_one_token_a_ratio_of_sequences_is_that_of_tokens():
    """RL-43: GSPO is GRPO there, bit for bit."""
    policy, old = ([-0.7], [-2.0], [-1.1], [-0.6]), ([-0.9], [-1.5], [-0.8], [-0.9])
    shares = []
    for name, more in (("gspo", {"epsilon_high": 0.2}), ("grpo", {})):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policies, "POLICY", policy)
            patch.setattr(policies, "OLD", old)
            drawn = policies.rollouts(reference=False)
            made = objective(name, beta=0, epsilon=0.2, **more)
            shares.append(policies.step_loss(made, drawn, policy))
    assert shares[0][0] == shares[1][0]
    assert all((one == other).all() for one, other in zip(*(one[1] for one in shares), strict=True))


@pytest.mark.parametrize("name", ["online-dpo", "self-rewarding"])
def test_a_tie_moves_nothing(name):
    """RL-60: the third of the rows."""
    network = Tables(1)
    *_, tie = sides(numbers_of(Tables(2)))
    loss = objective(name, beta=0.3).share(network, None, tie).loss
    loss.backward()
    assert loss.item() == 0
    assert not any(one.grad is not None and one.grad.any() for one in network.parameters())


def test_xpo_without_its_bonus_is_online_dpo():
    """RL-62: bit for bit."""
    network, duels = Tables(1), sides(numbers_of(Tables(2)))
    ours, theirs = (
        [objective(name, beta=0.3, **more).share(network, None, one).loss for one in duels]
        for name, more in (("xpo", {"alpha": 0}), ("online-dpo", {}))
    )
    assert [one.item() for one in ours] == [one.item() for one in theirs]


def test_self_play_is_over_where_the_opponent_says_the_rows_answer():
    """RL-65: then nothing is to learn."""
    from kolm_build.steps.objectives.spin import Round

    network, before = Tables(1), numbers_of(Tables(2))
    told = torch.tensor(token_logs(before, ROWS[0]).sum())
    played = Round(said=ROWS[0], real_reference=told, said_reference=told, rows=1)
    loss = objective("spin").share(network, ROWS[0], played).loss
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert max(one.grad.abs().max() for one in (network.embed.weight, network.head.weight)) < 1e-7


@pytest.mark.parametrize("name", ["raft", "star"])
def test_where_nothing_is_kept_nothing_is_learned(name):
    """RL-66, RL-67; and one answer that is kept is fine-tuning on it, bit for bit."""
    from kolm_build.steps.objectives._kept import Choice, Kept

    made, network = objective(name), Tables(1)
    nothing = Kept(choice=Choice(sequence=None, rewards=(0.0,)), tokens=1)
    loss = made.share(network, None, nothing).loss
    loss.backward()
    assert loss.item() == 0
    assert all(one.grad is None for one in network.parameters())
    kept = Kept(choice=Choice(sequence=ROWS[0], rewards=(1.0,)), tokens=ROWS[0].tokens)
    assert made.share(network, None, kept).loss.item() == pytest.approx(
        step("sft", network, ROWS[:1])[0], rel=1e-7
    )


def test_nash_md_rests_where_neither_answer_is_better_and_the_policy_is_the_reference():
    """RL-63."""
    network = Tables(1)
    made = objective("nash-md", tau=0.2)
    made.given = SimpleNamespace(change=Reference(Tables(1)))
    with torch.no_grad():
        match = made._match(network, ROWS[0], 0.5, 0.5, rows=1)
    assert match.weight == 0
    made.share(network, None, match).loss.backward()
    assert not any(one.grad is not None and one.grad.any() for one in network.parameters())


# --------------------------------------------------------------------------- distillation


@pytest.mark.parametrize("name", [*DISTANCES, "kd-hidden", "minilm"])
def test_with_the_answers_alone_it_is_fine_tuning(name):
    """DIST-1: hard_weight is 1."""
    ours, theirs = step(name, teacher=Tables(2), hard_weight=1), step("sft")
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    for at, one in theirs[1].items():
        torch.testing.assert_close(ours[1][at], one, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [*DISTANCES, "kd-hidden", "minilm"])
def test_of_itself_a_student_learns_nothing(name):
    """DIST-2: loss and gradient are 0."""
    loss, found = step(name, teacher=Tables(1), hard_weight=0)
    assert abs(loss) < 1e-6
    assert all(one.abs().max() < 1e-6 for one in found.values())


def test_of_itself_a_student_that_speaks_learns_nothing():
    """DIST-1: gkd; and across vocabularies what is left is fine-tuning."""
    from kolm_build.steps._rollouts import Completion
    from kolm_build.steps.objectives.gkd import Said
    from kolm_build.steps.objectives.uld import Twice

    network, made = Tables(1), objective("gkd")
    made.teacher = SimpleNamespace(network=Tables(1))
    said = Said(completion=Completion(sequence=ROWS[1], text="", ended=True), tokens=4)
    loss = made.share(network, None, said).loss
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert network.head.weight.grad.abs().max() < 1e-6
    ours = step("uld", None, [Twice(student=one, teacher=one) for one in ROWS], teacher=Tables(1))
    theirs = step("sft")
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    torch.testing.assert_close(ours[1][HEAD], theirs[1][HEAD], rtol=1e-6, atol=1e-6)


def test_jeffreys_divergence_is_both_divergences():
    """DIST-1: forward at a temperature of 1, and reverse."""
    one, other, whole = (
        step(name, teacher=Tables(2), hard_weight=0, **params)[0]
        for name, params in (("kd", {"temperature": 1}), ("kd-reverse", {}), ("kd-jeffreys", {}))
    )
    assert whole == pytest.approx(one + other, rel=1e-6)
    swapped = step("kd-jeffreys", Tables(2), teacher=Tables(1), hard_weight=0)[0]
    assert whole == pytest.approx(swapped, rel=1e-6)


def test_a_small_share_of_jsd_is_that_much_of_the_forward_divergence():
    """DIST-1: arXiv:2306.13649, section 2; by the other end of the reverse one."""
    draw = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 3, 5, generator=draw).double()
    for beta, name, heat in (("0.00001", "kd", {"temperature": 1}), ("0.99999", "kd-reverse", {})):
        found = objective("kd-jsd", beta=beta)._distance(student, teacher)
        wanted = objective(name, **heat)._distance(student, teacher)
        torch.testing.assert_close(found / 1e-5, wanted, rtol=1e-3, atol=0)


def test_of_models_that_agree_in_nothing_the_total_variation_is_1():
    """DIST-1: and of models that agree in all it is 0."""
    sure = torch.tensor([[60.0, 0.0, 0.0]]).double()
    made = objective("kd-tvd")
    assert made._distance(sure, sure.flip(1)).item() == pytest.approx(1)
    assert made._distance(sure, sure).item() == 0
