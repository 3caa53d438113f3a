"""Objectives that learn from a teacher: each distance is what its paper says."""

from __future__ import annotations

import importlib
import json
import math

import numpy as np
import pytest
import torch

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.steps.table import DISTILLATION
from tests.steps_ml.calling import files_of, run_step, write_lines, write_rows
from tests.support.models import tiny_llama, tiny_rows

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

SAYING = ("gkd", "minillm", "seq-kd")
"""Those of prompts, to which one of the two says something."""

STUDENT = torch.tensor([[1.0, 0.2, -0.5, 0.3], [0.1, 0.4, 2.0, -1.0]], dtype=torch.float64)
TEACHER = torch.tensor([[0.5, 1.5, -0.2, 0.0], [-0.3, 0.9, 1.2, 0.6]], dtype=torch.float64)


def objective(name, **params):
    module = importlib.import_module(f"kolm_build.steps.objectives.{name.replace('-', '_')}")
    fields = Fields({key: str(value) for key, value in params.items()})
    made = module.TAKE(fields)
    fields.done()
    return made


def p(logits, temperature=1.0):
    powers = np.exp(logits.numpy() / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def kl(one, other):
    return (one * np.log(one / other)).sum(axis=1)


def jsd(t, q, beta):
    m = beta * t + (1 - beta) * q
    return beta * kl(t, m) + (1 - beta) * kl(q, m)


FORMULAS = {
    "kd": ({"temperature": 2}, kl),
    "kd-reverse": ({}, lambda t, q: kl(q, t)),
    "kd-jeffreys": ({}, lambda t, q: kl(t, q) + kl(q, t)),
    "kd-jsd": ({"beta": 0.3}, lambda t, q: jsd(t, q, 0.3)),
    "kd-skew": ({"alpha": 0.2}, lambda t, q: kl(t, 0.2 * t + 0.8 * q)),
    "kd-skew-reverse": ({"alpha": 0.2}, lambda t, q: kl(q, 0.2 * q + 0.8 * t)),
    "kd-tvd": ({}, lambda t, q: np.abs(t - q).sum(axis=1) / 2),
}


def distance(made, student=STUDENT, teacher=TEACHER):
    return made._distance(student, teacher)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_distance_is_that_of_its_paper(name):
    """DIST-1: an independent computation, to 1e-6."""
    params, formula = FORMULAS[name]
    heat = params.get("temperature", 1)
    wanted = heat**2 * formula(p(TEACHER, heat), p(STUDENT, heat))
    found = distance(objective(name, **params))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_gradient_is_that_of_finite_differences(name):
    """DIST-1."""
    made = objective(name, **FORMULAS[name][0])
    logits = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda one: distance(made, student=one), [logits])


@pytest.mark.parametrize("name", FORMULAS)
def test_a_distance_is_zero_of_equals_alone(name):
    """DIST-2."""
    made = objective(name, **FORMULAS[name][0])
    assert torch.allclose(distance(made, student=TEACHER), torch.zeros(2).double(), atol=1e-12)
    assert (distance(made) > 1e-4).all()


def test_forward_is_from_the_teacher_and_reverse_from_the_student():
    """DIST-2: the forward divergence punishes what the student leaves out."""
    student = torch.tensor([[9.0, 0.0, 0.0, 0.0]]).double()
    teacher = torch.tensor([[3.0, 3.0, 0.0, 0.0]]).double()
    forward = distance(objective("kd", temperature=1), student, teacher)
    reverse = distance(objective("kd-reverse"), student, teacher)
    assert forward > 3 * reverse


@pytest.mark.parametrize(
    ("name", "params", "beta"),
    [("kd", {"temperature": 1}, 0), ("kd-reverse", {}, 1), ("kd-jsd", {"beta": 0.3}, 0.3)],
)
def test_a_distance_is_that_of_trl(name, params, beta):
    """DIST-3: TRL's own code is the oracle."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    theirs = GKDTrainer.generalized_jsd_loss(
        STUDENT[None], TEACHER[None], beta=beta, reduction="sum"
    )
    ours = distance(objective(name, **params)).sum()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "params", "end"),
    [("kd-skew", {"alpha": 0}, "kd"), ("kd-skew-reverse", {"alpha": 0}, "kd-reverse")],
)
def test_without_a_skew_the_divergence_is_the_plain_one(name, params, end):
    """DIST-2."""
    plain = objective(end, **({"temperature": 1} if end == "kd" else {}))
    torch.testing.assert_close(distance(objective(name, **params)), distance(plain))


def test_the_square_of_the_temperature_keeps_the_size_of_gradients():
    """DIST-1: at a high temperature the gradient tends to that of matching logits."""
    made = objective("kd", temperature=100)
    logits = STUDENT.clone().requires_grad_()
    distance(made, student=logits).sum().backward()
    centred = [one - one.mean(dim=1, keepdim=True) for one in (STUDENT, TEACHER)]
    wanted = (centred[0] - centred[1]) / STUDENT.shape[1]
    torch.testing.assert_close(logits.grad, wanted, rtol=5e-2, atol=5e-3)


def test_sorted_probabilities_meet_whatever_they_spell():
    """DIST-4: equation 6 of ULD, by hand; other numbers of words and of tokens."""
    from kolm_build.steps.objectives.uld import sorted_distance

    logits = torch.tensor([[0.0, math.log(3)], [1.0, 2.0]]).double()
    taught = torch.tensor([[math.log(2), 0.0, 0.0]]).double()
    found = sorted_distance(logits, taught)
    assert found.tolist() == pytest.approx([0.25 + 0 + 0.25])
    same = sorted_distance(logits, logits.flip(1))
    assert same.tolist() == pytest.approx([0, 0])


def test_relations_need_no_equal_sizes():
    """DIST-5: and are those of attention."""
    from kolm_build.steps.objectives.minilm import relations

    values = torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.5, 0.0, 3.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    found = relations(values, 2)
    one = values[:, :2] @ values[:, :2].T / math.sqrt(2)
    torch.testing.assert_close(found[0], one)
    assert found.shape == relations(torch.ones(3, 10), 2).shape


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The tiny model, a teacher that knows the task better, rows of it, prompts of it."""
    root = tmp_path_factory.mktemp("inputs")
    rows = [json.loads(line) for line in tiny_rows(root / "rows").read_text().splitlines()][:12]
    pairs = [(one["text"], one["ward"]) for one in rows]
    student = tiny_llama(root / "model")
    train = write_rows(root / "train", "train.jsonl", pairs)
    made = run_step(
        "sft",
        root / "runs",
        inputs={"model": student, "train": train},
        params={"adapter": "full", "compute_dtype": "fp32", "epochs": 6, "learning_rate": "3e-3"},
        outputs=("model", "metrics", "trace"),
        portable=(1, None),
    )
    lines = [prompt_row(at, text) for at, (text, _) in enumerate(pairs, 1)]
    return {
        "model": student,
        "teacher": made.folder("model"),
        "train": train,
        "prompts": write_lines(root / "prompts", "train.jsonl", lines),
    }


def prompt_row(number, text):
    return strict_json.dumps(
        {
            "fields": {},
            "group": "",
            "id": f"sha256:{number:064x}",
            "messages": [{"content": text, "role": "user"}],
            "reference": "",
        }
    )


def trained(name, inputs, root, **params):
    prompts = name in SAYING
    return run_step(
        name,
        root,
        inputs={
            "model": inputs["model"],
            "teacher": inputs["teacher"],
            "train": inputs["prompts" if prompts else "train"],
        },
        params={"compute_dtype": "fp32", "learning_rate": "5e-3", "max_steps": 3, **params},
        portable=(1, None),
    )


@pytest.mark.parametrize("name", ["kd", "kd-hidden", "minilm", "uld", *SAYING])
def test_a_student_learns_and_the_bytes_are_the_same_in_parts(name, inputs, tmp_path):
    """ALG-3, DIST-6: micro-batches of any size give the same bits."""
    more = {"max_new_tokens": 6} if name in SAYING else {}
    whole = trained(name, inputs, tmp_path / "a", batch_size=4, **more)
    split = trained(name, inputs, tmp_path / "b", batch_size=2, gradient_accumulation=2, **more)
    for output in ("adapter", "metrics"):
        assert files_of(whole.folder(output)) == files_of(split.folder(output)), output
    table = (whole.folder("metrics") / "metrics.csv").read_text().splitlines()
    losses = [float(line.split(",")[1]) for line in table[1:]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_a_teacher_with_other_tokens_is_refused(inputs, tmp_path):
    """DIST-7: and the objective that needs no equal tokens is named."""
    other = tmp_path / "other"
    other.mkdir()
    for path in inputs["teacher"].iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    text = (other / "tokenizer.json").read_text()
    table = json.loads(text)
    words = table["model"]["vocab"]
    one, two = sorted(words, key=words.get)[10:12]
    words[one], words[two] = words[two], words[one]
    (other / "tokenizer.json").write_text(json.dumps(table))
    refusal = trained("kd", inputs | {"teacher": other}, tmp_path / "run").refusal()
    assert refusal["where"] == "teacher"
    assert "uld" in refusal["advice"]
    assert trained("uld", inputs | {"teacher": other}, tmp_path / "run").status == 0


def test_the_catalogue_and_the_steps_name_the_same_parameters():
    """ALG-2: and the same defaults."""
    from kolm_build.core.catalogue.algorithm import read_parameters
    from kolm_build.core.catalogue.distillation import ROWS

    assert sorted(row.id for row in ROWS) == sorted(DISTILLATION)
    for row in ROWS:
        module = importlib.import_module(f"kolm_build.steps.objectives.{row.id.replace('-', '_')}")
        fields = Fields(dict(read_parameters(row.parameters, Fields({}))))
        given = module.TAKE(fields)
        fields.done()
        assert vars(given) == vars(module.TAKE(Fields({}))), row.id
