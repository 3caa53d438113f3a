"""Objectives over preferences: each loss is what its paper says, and what TRL computes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kolm_build.core.fields import Fields
from kolm_build.steps.table import PREFERENCE

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

SINGLE = {"kto", "bco", "apo-zero-unpaired"}
SORTED = {"aot", "aot-unpaired"}
PAIRED = sorted(set(PREFERENCE) - SINGLE - SORTED - {"wpo"})

# Two rows: log p of each token of the chosen and of the rejected answer, policy and reference.
CHOSEN = ([-0.7, -1.2, -0.1], [-2.0, -0.4])
REJECTED = ([-1.1, -0.3], [-0.6, -1.9, -0.2, -0.8])
CHOSEN_REFERENCE = ([-0.9, -1.0, -0.4], [-1.5, -0.6])
REJECTED_REFERENCE = ([-0.8, -0.5], [-0.9, -1.1, -0.5, -0.7])
MARGIN = 2.5


def objective(name, **params):
    import importlib

    fields = Fields({key: str(value) for key, value in params.items()})
    made = importlib.import_module(f"kolm_build.steps.objectives.{name.replace('-', '_')}").TAKE(
        fields
    )
    fields.done()
    return made


def sides(row, *, dtype=torch.float64, grad=False):
    from kolm_build.steps.objectives._pairs import Side

    def side(policy, reference):
        return Side(
            policy=torch.tensor(policy[row], dtype=dtype, requires_grad=grad),
            reference=torch.tensor(reference[row], dtype=dtype),
        )

    return side(CHOSEN, CHOSEN_REFERENCE), side(REJECTED, REJECTED_REFERENCE)


def example(row):
    return SimpleNamespace(
        number=row,
        margin=MARGIN,
        chosen=SimpleNamespace(tokens=len(CHOSEN[row])),
        rejected=SimpleNamespace(tokens=len(REJECTED[row])),
    )


def whole_loss(made, *, dtype=torch.float64):
    """The loss of a step of both rows, what is added to the rows' own losses included."""
    pairs = [sides(row, dtype=dtype) for row in (0, 1)]
    rows = [made.loss(*pair, example(row)) for row, pair in enumerate(pairs)]
    nll = -sum(chosen.log_p for chosen, _ in pairs) / sum(map(len, CHOSEN))
    return sum(rows) / 2 + made.nll_weight * nll


def log_s(x):
    return -math.log1p(math.exp(-x))


def s(x):
    return 1 / (1 + math.exp(-x))


class Row:
    """The figures of one row in plain floats; the formulas below are written from the papers."""

    def __init__(self, row):
        self.w, self.l = sum(CHOSEN[row]), sum(REJECTED[row])
        self.rw = self.w - sum(CHOSEN_REFERENCE[row])
        self.rl = self.l - sum(REJECTED_REFERENCE[row])
        self.nw, self.nl = len(CHOSEN[row]), len(REJECTED[row])
        self.h = self.rw - self.rl
        self.row = row


def odds(log_p):
    return log_p - math.log(1 - math.exp(log_p))


def desensitised(r, alpha):
    n = min(r.nw, r.nl)

    def ratio(policy, reference):
        values = [p - q for p, q in zip(policy[r.row], reference[r.row], strict=True)]
        return sum(values[:n]) + alpha * sum(values[n:])

    return ratio(CHOSEN, CHOSEN_REFERENCE) - ratio(REJECTED, REJECTED_REFERENCE)


def shaped(mean, alpha):
    return (1 - math.exp(mean) ** -alpha) / alpha


def exo(r, beta, e):
    p, q = s(beta * r.h), s(-beta * r.h)
    return p * math.log(p / (1 - e)) + q * math.log(q / e)


def mixed(h, tau, beta):
    g = s(beta * h / tau)
    return -(1 - g) * log_s(beta * h) + g * math.exp(-beta * h)


FORMULAS = {
    "dpo": ({"beta": 0.3}, lambda r: -log_s(0.3 * r.h)),
    "cdpo": (
        {"beta": 0.3, "label_smoothing": 0.2},
        lambda r: -0.8 * log_s(0.3 * r.h) - 0.2 * log_s(-0.3 * r.h),
    ),
    "rdpo": (
        {"beta": 0.3, "label_smoothing": 0.2},
        lambda r: (-0.8 * log_s(0.3 * r.h) + 0.2 * log_s(-0.3 * r.h)) / 0.6,
    ),
    "lndpo": ({"beta": 2}, lambda r: -log_s(2 * (r.rw / r.nw - r.rl / r.nl))),
    "ipo": ({"beta": 0.1}, lambda r: (r.rw / r.nw - r.rl / r.nl - 5) ** 2),
    "rso": ({"beta": 0.3}, lambda r: max(0, 1 - 0.3 * r.h)),
    "exo": ({"beta": 0.3, "label_smoothing": 0.01}, lambda r: exo(r, 0.3, 0.01)),
    "nca": (
        {"beta": 0.3},
        lambda r: -log_s(0.3 * r.rw) - log_s(-0.3 * r.rw) / 2 - log_s(-0.3 * r.rl) / 2,
    ),
    "sppo": ({"beta": 0.1}, lambda r: (r.rw - 5) ** 2 + (r.rl + 5) ** 2),
    "bco-pair": ({"beta": 0.3}, lambda r: -log_s(0.3 * r.rw) - log_s(-0.3 * r.rl)),
    "apo-zero": ({"beta": 0.3}, lambda r: 1 - s(0.3 * r.rw) + s(0.3 * r.rl)),
    "apo-down": ({"beta": 0.3}, lambda r: s(0.3 * r.rw) + 1 - s(0.3 * r.h)),
    "discopop": ({"beta": 0.3, "tau": 0.5}, lambda r: mixed(r.h, 0.5, 0.3)),
    "f-dpo": (
        {"beta": 0.3, "divergence": "jensen-shannon"},
        lambda r: (
            -log_s(
                0.3
                * (
                    math.log(2 * math.exp(r.rw) / (1 + math.exp(r.rw)))
                    - math.log(2 * math.exp(r.rl) / (1 + math.exp(r.rl)))
                )
            )
        ),
    ),
    "ld-dpo": ({"beta": 0.3, "alpha": 0.25}, lambda r: -log_s(0.3 * desensitised(r, 0.25))),
    "rpo": ({"beta": 0.3, "nll_weight": 0.5}, lambda r: -log_s(0.3 * r.h)),
    "dpop": (
        {"beta": 0.3, "penalty": 2},
        lambda r: -log_s(0.3 * (r.h - 2 * max(0, -r.rw))),
    ),
    "odpo": ({"beta": 0.3, "alpha": 0.5}, lambda r: -log_s(0.3 * r.h - 0.5 * math.log(MARGIN))),
    "orpo": (
        {"odds_weight": 0.2},
        lambda r: -0.2 * log_s(odds(r.w / r.nw) - odds(r.l / r.nl)),
    ),
    "cpo": ({"beta": 0.3, "nll_weight": 1}, lambda r: -log_s(0.3 * (r.w - r.l))),
    "simpo": (
        {"beta": 2, "gamma": 0.5},
        lambda r: -log_s(2 * (r.w / r.nw - r.l / r.nl) - 0.5),
    ),
    "alphapo": (
        {"beta": 2, "gamma": 0.5, "alpha": 0.25},
        lambda r: -log_s(2 * (shaped(r.w / r.nw, 0.25) - shaped(r.l / r.nl, 0.25)) - 0.5),
    ),
    "slic": ({"beta": 1, "nll_weight": 0.1}, lambda r: max(0, 1 - r.w + r.l)),
}


def test_every_objective_over_pairs_has_a_formula_here():
    assert sorted(FORMULAS) == PAIRED


@pytest.mark.parametrize("name", PAIRED)
def test_a_loss_is_that_of_its_paper(name):
    """PREF-1: worked by hand from the paper's equation, to 1e-6."""
    params, formula = FORMULAS[name]
    made = objective(name, **params)
    for row in (0, 1):
        found = made.loss(*sides(row), example(row)).item()
        assert found == pytest.approx(formula(Row(row)), rel=1e-6), row


@pytest.mark.parametrize("name", PAIRED)
def test_a_gradient_is_that_of_finite_differences(name):
    """PREF-1."""
    made = objective(name, **FORMULAS[name][0])
    for row in (0, 1):
        chosen, rejected = sides(row)

        def loss(one, other, chosen=chosen, rejected=rejected, row=row):
            from dataclasses import replace

            return made.loss(
                replace(chosen, policy=one), replace(rejected, policy=other), example(row)
            )

        points = [side.policy.clone().requires_grad_() for side in (chosen, rejected)]
        assert torch.autograd.gradcheck(loss, points)


TRL = {
    "dpo": ("sigmoid", {}),
    "rdpo": ("robust", {}),
    "lndpo": ("sigmoid_norm", {}),
    "ipo": ("ipo", {}),
    "rso": ("hinge", {}),
    "exo": ("exo_pair", {}),
    "nca": ("nca_pair", {}),
    "sppo": ("sppo_hard", {}),
    "bco-pair": ("bco_pair", {}),
    "apo-zero": ("apo_zero", {}),
    "apo-down": ("apo_down", {}),
    "discopop": ("discopop", {}),
    "f-dpo": ("sigmoid", {"f_divergence_type": "js_divergence"}),
    "rpo": ("sigmoid sft", {"loss_weights": [1.0, 0.5]}),
    "aot": ("aot", {}),
    "aot-unpaired": ("aot_unpaired", {}),
}


def padded(values):
    width = max(map(len, values))
    return [[*one, *[0.0] * (width - len(one))] for one in values]


def trl_loss(kind, settings, params):
    """What TRL's own code makes of the rows; its network is a stub that says the figures."""
    from trl import DPOTrainer

    policy = padded([*CHOSEN, *REJECTED])
    mask = [[1] * len(one) + [0] * (len(policy[0]) - len(one)) for one in (*CHOSEN, *REJECTED)]
    log_p = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    completion = torch.tensor([[0, *row] for row in mask])
    trainer = stub(DPOTrainer, kind.split(), settings, params)
    inputs = {
        "input_ids": torch.ones_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
        "ref_chosen_logps": torch.tensor([sum(one) for one in CHOSEN_REFERENCE]).double(),
        "ref_rejected_logps": torch.tensor([sum(one) for one in REJECTED_REFERENCE]).double(),
    }
    told = SimpleNamespace(
        log_probs=log_p,
        mean_logits=torch.zeros_like(log_p),
        is_top1=torch.zeros(log_p.shape, dtype=torch.bool),
        entropy=torch.zeros_like(log_p),
    )
    return trainer._compute_loss(lambda **_: told, inputs, return_outputs=False), log_p


def stub(kind, losses, settings, params):
    from collections import defaultdict

    trainer = kind.__new__(kind)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather_for_metrics=lambda value: value, gather=lambda v: v
    )
    vars(trainer).update(
        {
            "model": SimpleNamespace(training=True),
            "accelerator": accelerator,
            "args": SimpleNamespace(discopop_tau=params.get("tau"), device=torch.device("cpu")),
            "aux_loss_enabled": False,
            "beta": params.get("beta"),
            "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5,
            "label_smoothing": params.get("label_smoothing", 0.0),
            "ld_alpha": None,
            "loss_types": losses,
            "loss_weights": [1.0] * len(losses),
            "precompute_ref_logps": True,
            "use_weighting": False,
            "_metrics": defaultdict(lambda: defaultdict(list)),
            "_total_train_tokens": 0,
            "_tp_size": 1,
            "state": SimpleNamespace(),
        }
        | settings
    )
    return trainer


@pytest.mark.parametrize("name", TRL)
def test_a_loss_is_that_of_trl(name):
    """PREF-2: TRL's own code is the oracle, loss and gradient."""
    kind, settings = TRL[name]
    params = FORMULAS[name][0] if name in FORMULAS else {"beta": 0.3, "label_smoothing": 0.1}
    theirs, log_p = trl_loss(kind, settings, params)
    theirs.backward()
    made = objective(name, **params)
    ours, gradients = sorted_loss(made) if name in SORTED else step_loss(made)
    assert ours == pytest.approx(theirs.item(), rel=1e-6)
    for index, gradient in enumerate(gradients):
        wanted = log_p.grad[index, : len(gradient)]
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)


def step_loss(made):
    """The loss of a step of both rows, and its gradients: chosen answers, then rejected ones."""
    pairs = [sides(row, grad=True) for row in (0, 1)]
    rows = [made.loss(*pair, example(row)) for row, pair in enumerate(pairs)]
    nll = -sum(chosen.log_p for chosen, _ in pairs) / sum(map(len, CHOSEN))
    total = sum(rows) / 2 + made.nll_weight * nll
    total.backward()
    return total.item(), gradients_of(pairs)


def sorted_loss(made):
    """The same for a loss that is made in two passes."""
    pairs = [sides(row, grad=True) for row in (0, 1)]
    with torch.no_grad():
        parts = made.parts([sides(row) for row in (0, 1)])
    for (chosen, rejected), part in zip(pairs, parts, strict=True):
        (part.chosen * chosen.log_p + part.rejected * rejected.log_p).backward()
    return sum(part.loss.item() for part in parts), gradients_of(pairs)


def gradients_of(pairs):
    return [pair[side].policy.grad for side in (0, 1) for pair in pairs]


CPO = {
    "cpo": ({"loss_type": "sigmoid"}, False),
    "simpo": ({"loss_type": "simpo", "simpo_gamma": 0.5}, True),
    "alphapo": ({"loss_type": "simpo", "simpo_gamma": 0.5, "alpha": 0.25}, True),
}


@pytest.mark.parametrize("name", CPO)
def test_a_loss_without_a_reference_is_that_of_trl(name):
    """PREF-2."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    settings, averaged = CPO[name]
    params = FORMULAS[name][0]
    trainer = CPOTrainer.__new__(CPOTrainer)
    plain = {"alpha": 0.0, "beta": params["beta"], "label_smoothing": 0.0}
    vars(trainer).update(plain | settings)
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"))
    log_ps = [
        torch.tensor([sum(one) / (len(one) if averaged else 1) for one in side]).double()
        for side in (CHOSEN, REJECTED)
    ]
    theirs, _, _ = trainer.cpo_loss(*log_ps)
    made = objective(name, **params)
    for row in (0, 1):
        ours = made.loss(*sides(row), example(row)).item()
        assert ours == pytest.approx(theirs[row].item(), rel=1e-6)


def test_the_odds_ratio_is_that_of_trl():
    """PREF-2."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    trainer = ORPOTrainer.__new__(ORPOTrainer)
    trainer.beta, trainer.accelerator = 0.2, SimpleNamespace(device=torch.device("cpu"))
    log_ps = [
        torch.tensor([sum(one) / len(one) for one in side], dtype=torch.float32)
        for side in (CHOSEN, REJECTED)
    ]
    theirs = trainer.odds_ratio_loss(*log_ps)[0]
    made = objective("orpo", odds_weight="0.2")
    for row in (0, 1):
        ours = made.loss(*sides(row), example(row)).item()
        assert ours == pytest.approx(-theirs[row].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("one", "params", "other", "others"),
    [
        ("cdpo", {"label_smoothing": 0}, "dpo", {}),
        ("rdpo", {"label_smoothing": 0}, "dpo", {}),
        ("ld-dpo", {"alpha": 1}, "dpo", {}),
        ("dpop", {"penalty": 0}, "dpo", {}),
        ("odpo", {"alpha": 0}, "dpo", {}),
        ("rpo", {"nll_weight": 0}, "dpo", {}),
        ("alphapo", {"alpha": 0}, "simpo", {}),
    ],
)
def test_a_parameter_at_its_end_gives_the_objective_it_came_from(one, params, other, others):
    """PREF-3: bit for bit."""
    made, plain = objective(one, **params), objective(other, **others)
    for row in (0, 1):
        pair = sides(row, dtype=torch.float32)
        assert torch.equal(made.loss(*pair, example(row)), plain.loss(*pair, example(row)))


def test_alphapo_tends_to_simpo():
    """PREF-3."""
    near, simpo = objective("alphapo", alpha="0.000001"), objective("simpo")
    pair = sides(0)
    assert near.loss(*pair, example(0)).item() == pytest.approx(
        simpo.loss(*pair, example(0)).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "params", "value"),
    [
        ("dpo", {}, math.log(2)),
        ("ipo", {"beta": 0.1}, 25),
        ("sppo", {"beta": 0.1}, 50),
        ("nca", {}, 2 * math.log(2)),
        ("apo-zero", {}, 1),
        ("rso", {}, 1),
        ("f-dpo", {"divergence": "forward-kl"}, math.log(2)),
        ("f-dpo", {"divergence": "alpha-half"}, math.log(2)),
    ],
)
def test_what_a_loss_is_before_anything_is_learnt(name, params, value):
    """PREF-3: the policy is the reference."""
    from kolm_build.steps.objectives._pairs import Side

    same = [torch.tensor(one[0], dtype=torch.float64) for one in (CHOSEN, REJECTED)]
    pair = [Side(policy=one, reference=one) for one in same]
    assert objective(name, **params).loss(*pair, example(0)).item() == pytest.approx(value)


def test_dpo_without_a_scale_learns_nothing():
    """PREF-3: beta is 0."""
    loss, gradients = step_loss(objective("dpo", beta=0))
    assert loss == pytest.approx(math.log(2))
    assert all((gradient == 0).all() for gradient in gradients)


def test_orpo_without_its_odds_is_the_likelihood_of_the_chosen_answers():
    """PREF-3."""
    loss, gradients = step_loss(objective("orpo", odds_weight=0))
    assert loss == pytest.approx(-sum(map(sum, CHOSEN)) / 5)
    assert all((one == -0.2).all() for one in gradients[:2])
    assert all((one == 0).all() for one in gradients[2:])


@pytest.mark.parametrize("name", sorted(SORTED))
def test_a_sorted_loss_has_the_gradient_of_finite_differences(name):
    """PREF-4: made in two passes, it is the gradient of the whole."""
    made = objective(name, beta=0.3, label_smoothing=0.1)
    flat = np.concatenate([np.array(one) for one in (*CHOSEN, *REJECTED)])
    sizes = [len(one) for one in (*CHOSEN, *REJECTED)]

    def value(values):
        from kolm_build.steps.objectives._pairs import Side

        parts = np.split(values, np.cumsum(sizes)[:-1])
        references = (*CHOSEN_REFERENCE, *REJECTED_REFERENCE)
        made_sides = [
            Side(policy=torch.tensor(part), reference=torch.tensor(reference).double())
            for part, reference in zip(parts, references, strict=True)
        ]
        pairs = [(made_sides[row], made_sides[2 + row]) for row in (0, 1)]
        return sum(part.loss.item() for part in made.parts(pairs))

    _, gradients = sorted_loss(made)
    found = np.concatenate([one.numpy() for one in gradients])
    for at in range(len(flat)):
        step = np.zeros_like(flat)
        step[at] = 1e-6
        wanted = (value(flat + step) - value(flat - step)) / 2e-6
        assert found[at] == pytest.approx(wanted, abs=1e-7), at


def test_wpo_weighs_a_pair_by_how_likely_the_policy_were_to_say_it():
    """PREF-1: equation 2, aligned; of a network that always says the same the weight is 1."""
    from kolm_build.steps.objectives.wpo import weight

    logits = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
    ids = torch.tensor([1, 2])
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    wanted = np.exp(np.mean([np.log(p[t, ids[t]] / (p[t] ** 2).sum()) for t in (0, 1)]))
    assert weight(logits, ids).item() == pytest.approx(wanted)
    assert weight(torch.full((2, 4), 3.0), torch.tensor([0, 1])).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("good", "kto", "bco", "apo"),
    [
        (True, 2 * (1 - s(0.3 * (0.5 - 0.2))), -log_s(0.15 - 0.2), 1 - s(0.15)),
        (False, 3 * (1 - s(0.3 * (0.2 - 0.5))), -log_s(0.2 - 0.15), s(0.15)),
    ],
)
def test_losses_of_single_answers_are_those_of_their_papers(good, kto, bco, apo):
    """PREF-1."""
    row = SimpleNamespace(good=good, weight=1.0)
    ratio, point = torch.tensor(0.5).double(), torch.tensor(0.2).double()
    made = objective("kto", beta=0.3, good_weight=2, bad_weight=3)
    assert made.loss(ratio, row, point).item() == pytest.approx(kto)
    assert objective("bco", beta=0.3).loss(ratio, row, point).item() == pytest.approx(bco)
    made = objective("apo-zero-unpaired", beta=0.3)
    assert made.loss(ratio, row, point).item() == pytest.approx(apo)


def test_the_catalogue_and_the_steps_name_the_same_parameters():
    """ALG-2: and the same defaults."""
    from kolm_build.core.catalogue.algorithm import read_parameters
    from kolm_build.core.catalogue.preference import ROWS

    assert sorted(row.id for row in ROWS) == sorted(PREFERENCE)
    for row in ROWS:
        given = dict(read_parameters(row.parameters, Fields({})))
        assert vars(objective(row.id, **given)) == vars(objective(row.id)), row.id
