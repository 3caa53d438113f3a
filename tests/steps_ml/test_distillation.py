"""Objectives that learn from a teacher: each distance is what its paper says."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import struct

import numpy as np
import pytest
import torch

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.runtime.loading import load
from kolm_build.steps._conversations import read_conversations
from kolm_build.steps._sequences import Tokeniser, answer_logits
from kolm_build.steps._teacher_logits import Likeliest, TeacherLogits, digest_of_vocabulary
from kolm_build.steps.objectives.kd_cached import KdCached
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


WIDE = torch.linspace(-3, 4, 66, dtype=torch.float64).sin().reshape(6, 11)
WIDE_TEACHER = torch.linspace(1, 9, 66, dtype=torch.float64).cos().reshape(6, 11) * 2


def cached(top_k):
    return KdCached.take(Fields({"teacher_top_k": top_k}))


def kept(top_k, logits=WIDE_TEACHER, temperature=2.0):
    return Likeliest.of(logits, temperature=temperature, top_k=top_k)


@pytest.mark.parametrize("top_k", [1, 3, 9, 10, 11, 64])
def test_what_is_not_kept_counts_as_one_token(top_k):
    """DIST-86: an independent computation; of all tokens but one or more it is kd's (DIST-87)."""
    t, q = p(WIDE_TEACHER, 2), p(WIDE, 2)
    order = np.argsort(-t, axis=1)[:, :top_k]
    some = [np.take_along_axis(one, order, axis=1) for one in (t, q)]
    tails = [1 - one.sum(axis=1, keepdims=True) for one in some]
    coarse = [np.hstack(both) for both in zip(some, tails, strict=True)] if top_k < 11 else some
    found = cached(top_k)._distance(WIDE, kept(top_k)).numpy()
    np.testing.assert_allclose(found, 4 * kl(*coarse), rtol=1e-6)
    whole = distance(objective("kd"), WIDE, WIDE_TEACHER).numpy()
    assert (found <= whole + 1e-9).all()
    if top_k >= 10:
        np.testing.assert_allclose(found, whole, rtol=1e-6)
    else:
        assert (found < whole).all()


@pytest.mark.parametrize("top_k", [2, 10, 11])
def test_the_gradient_of_what_was_kept_is_that_of_finite_differences(top_k):
    """DIST-86; where everything is kept it is kd's (DIST-87)."""
    made = cached(top_k)
    logits = WIDE.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda one: made._distance(one, kept(top_k)), [logits])
    if top_k >= 10:
        other = WIDE.clone().requires_grad_()
        made._distance(logits, kept(top_k)).sum().backward()
        distance(objective("kd"), other, WIDE_TEACHER).sum().backward()
        torch.testing.assert_close(logits.grad, other.grad, rtol=1e-6, atol=1e-9)


def test_what_was_kept_of_an_equal_is_no_distance():
    """DIST-86: and a rest too small for a number is no trouble, the student's or the teacher's."""
    same = cached(3)._distance(WIDE_TEACHER, kept(3))
    assert torch.allclose(same, torch.zeros(6).double(), atol=1e-12)
    sure = torch.tensor([[900.0, 0.0, 0.0, -5.0]])
    student = torch.tensor([[0.0, 800.0, 1.0, 2.0]], requires_grad=True)
    for one, other in ((sure, student), (student.detach() * 1.0, sure.clone().requires_grad_())):
        loss = cached(1)._distance(other, kept(1, one)).sum()
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(other.grad).all()


def test_of_equally_likely_tokens_the_first_is_kept():
    """DIST-80."""
    found = kept(2, torch.tensor([[0.0, 1.0, 1.0, 1.0]]), temperature=1.0)
    assert found.token_ids.tolist() == [[1, 2]]
    three = math.e * 3 + 1
    assert found.rest.tolist() == pytest.approx([(math.e + 1) / three])
    assert found.log_probabilities[0].tolist() == pytest.approx([1 - math.log(three)] * 2)


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
    kept = run_step(
        "teacher-logits",
        root / "runs",
        inputs={"model": made.folder("model"), "train": train},
        params={"temperature": "2", "teacher_top_k": 5},
        portable=(1, None),
    )
    return {
        "logits": kept.folder(),
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
    taught = "logits" if name == "kd-cached" else "teacher"
    return run(
        name,
        root,
        {
            "model": inputs["model"],
            taught: inputs[taught],
            "train": inputs["prompts" if prompts else "train"],
        },
        **params,
    )


def run(name, root, given, **params):
    return run_step(
        name,
        root,
        inputs=given,
        params={"compute_dtype": "fp32", "learning_rate": "5e-3", "max_steps": 3, **params},
        portable=(1, None),
    )


@pytest.mark.parametrize("name", ["kd", "kd-cached", "kd-hidden", "minilm", "uld", *SAYING])
def test_a_student_learns_and_the_bytes_are_the_same_in_parts(name, inputs, tmp_path):
    """ALG-3, DIST-6: micro-batches of any size give the same bits."""
    more = {"max_new_tokens": 6} if name in SAYING else {}
    more |= {"teacher_top_k": 5} if name == "kd-cached" else {}
    whole = trained(name, inputs, tmp_path / "a", batch_size=4, **more)
    split = trained(name, inputs, tmp_path / "b", batch_size=2, gradient_accumulation=2, **more)
    for output in ("adapter", "metrics"):
        assert files_of(whole.folder(output)) == files_of(split.folder(output)), output
    table = (whole.folder("metrics") / "metrics.csv").read_text().splitlines()
    losses = [float(line.split(",")[1]) for line in table[1:]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_the_teachers_logits_are_those_of_its_answers(inputs, tmp_path):
    """DIST-80, DIST-81, DIST-82: equal bytes whatever the threads."""
    folder = inputs["logits"]
    again = run_step(
        "teacher-logits",
        tmp_path,
        inputs={"model": inputs["teacher"], "train": inputs["train"]},
        params={"temperature": "2", "teacher_top_k": 5},
        portable=(2, None),
    )
    assert files_of(again.folder()) == files_of(folder)
    assert files_of(folder).keys() == {"logits.json", "logits.safetensors", "rows.jsonl"}
    model = load(inputs["teacher"], dtype=torch.float32)
    found = TeacherLogits.read(folder)
    tokens = Tokeniser(model=model, max_length=512)
    begin = 0
    for row, one in zip(
        read_conversations(inputs["train"] / "train.jsonl"), found.rows, strict=True
    ):
        sequence = tokens.sequence(row.messages, row.answer, "")
        packed = struct.pack(f"<{len(sequence.ids) + 1}I", sequence.start, *sequence.ids)
        assert one.sequence == f"sha256:{hashlib.sha256(packed).hexdigest()}"
        assert (one.id, one.tokens) == (row.id, sequence.tokens)
        part = found.likeliest.part(begin, begin + one.tokens)
        with torch.no_grad():
            logits, _ = answer_logits(model.network, sequence)
        known = torch.log_softmax(logits.double() / 2, dim=-1)
        torch.testing.assert_close(
            part.log_probabilities.double(), known.gather(1, part.token_ids), rtol=0, atol=1e-4
        )
        torch.testing.assert_close(
            part.log_probabilities.double().exp().sum(dim=1) + part.rest,
            torch.ones(one.tokens).double(),
            rtol=0,
            atol=1e-5,
        )
        begin += one.tokens
    head = strict_json.loads((folder / "logits.json").read_bytes())
    assert head.pop("vocabulary") == digest_of_vocabulary(model)
    assert head == {
        "format": "teacher-logits/1",
        "temperature": "2",
        "top_k": 5,
        "words": model.network.config.vocab_size,
    }


def test_logits_of_all_tokens_train_as_the_teacher_itself_does(inputs, tmp_path):
    """DIST-87: the losses of kd, to 1e-6."""
    every = run_step(
        "teacher-logits",
        tmp_path,
        inputs={"model": inputs["teacher"], "train": inputs["train"]},
        params={"temperature": "2", "teacher_top_k": 100_000},
        portable=(1, None),
    )
    given = inputs | {"logits": every.folder()}
    mine = trained("kd-cached", given, tmp_path / "a", teacher_top_k=100_000, batch_size=4)
    theirs = trained("kd", given, tmp_path / "b", batch_size=4)
    tables = [
        np.genfromtxt(one.folder("metrics") / "metrics.csv", delimiter=",", skip_header=1)
        for one in (mine, theirs)
    ]
    np.testing.assert_allclose(tables[0][0], tables[1][0], rtol=1e-5)
    np.testing.assert_allclose(tables[0][:, 1], tables[1][:, 1], rtol=1e-4)


def changed(folder, out, name, before, after):
    """A copy of `folder` in `out` whose file `name` has `after` for `before`."""
    out.mkdir()
    for file, data in files_of(folder).items():
        (out / file).write_bytes(data.replace(before, after, 1) if file == name else data)
    assert files_of(out) != files_of(folder)
    return out


def test_logits_of_another_teacher_or_other_rows_are_refused(inputs, tmp_path):
    """DIST-83, DIST-88."""

    def refusal(logits=inputs["logits"], train=inputs["train"], **params):
        given = {"model": inputs["model"], "logits": logits, "train": train}
        return run("kd-cached", tmp_path / "runs", given, teacher_top_k=5, **params).refusal()

    assert refusal(temperature="3")["where"] == "temperature"
    head, rows = inputs["logits"] / "logits.json", inputs["logits"] / "rows.jsonl"
    first = rows.read_bytes().splitlines()[0]
    seen = strict_json.loads(first)
    fault = {
        "vocabulary": ("logits.json", b"sha256:", b"sha256:0"),
        "format": ("logits.json", b"teacher-logits/1", b"teacher-logits/2"),
        f"row 1 ({seen['id']})": ("rows.jsonl", seen["sequence"].encode(), b"sha256:0"),
    }
    for where, (name, before, after) in fault.items():
        other = changed(inputs["logits"], tmp_path / where[:5], name, before, after)
        assert refusal(other)["where"] == where
    less = changed(inputs["logits"], tmp_path / "less", "rows.jsonl", first + b"\n", b"")
    assert refusal(less)["file"] == "logits.safetensors"
    assert head.exists()
    lines = (inputs["train"] / "train.jsonl").read_bytes().splitlines()
    swapped = write_lines(tmp_path / "swapped", "train.jsonl", [lines[1], lines[0], *lines[2:]])
    assert "not the one the teacher read" in refusal(train=swapped)["reason"]
    fewer = write_lines(tmp_path / "fewer", "train.jsonl", lines[:-1])
    assert "another number of rows" in refusal(train=fewer)["reason"]


def test_recorded_answers_train_as_supervised_ones_do(inputs, tmp_path):
    """DIST-89: without a teacher the rows are what it answered."""
    given = {"model": inputs["model"], "train": inputs["train"]}
    table = [
        run(name, tmp_path / name, given, batch_size=4).folder("metrics") / "metrics.csv"
        for name in ("seq-kd", "sft")
    ]
    losses = [np.genfromtxt(one, delimiter=",", skip_header=1)[:, 1] for one in table]
    np.testing.assert_allclose(*losses, rtol=1e-5)


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
