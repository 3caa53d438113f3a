"""Supervised objectives: each loss is what its paper says, and sft at its limit."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.steps.table import SUPERVISED
from tests.steps_ml.calling import files_of, row, run_step, write_lines
from tests.support.models import tiny_llama

pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

PROMPTS = [("a pain", "bone"), ("it is a cough", "lung"), ("sad", "mind"), ("a rash!", "skin")]
LOGITS = torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.1, 0.2, -0.3, 1.5], [3.0, 3.0, -2.0, 0.0]])
IDS = torch.tensor([0, 3, 2])


def objective(name, **params):
    module = importlib.import_module(f"kolm_build.steps.objectives.{name.replace('-', '_')}")
    fields = Fields(params)
    made = module.TAKE(fields)
    fields.done()
    return made


def feedback(number, prompt, answer, *, good=True, weight="1"):
    value = {
        "answer": answer,
        "good": good,
        "group": "",
        "id": f"sha256:{number:064x}",
        "messages": [{"content": prompt, "role": "user"}],
        "weight": weight,
    }
    return strict_json.dumps(value)


def text(number, words):
    return strict_json.dumps(
        {"group": "", "id": f"sha256:{number:064x}", "messages": [], "text": words}
    )


def lines_of(name):
    pairs = list(enumerate(PROMPTS, 1))
    if name == "texts":
        return [text(at, prompt + " is of the " + answer) for at, (prompt, answer) in pairs]
    if name == "weighted-sft":
        return [feedback(at, *pair, weight=str(at)) for at, pair in pairs]
    return [row(at, *pair) for at, pair in pairs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs a step under the guard; the files of its adapter, each run once."""
    root = tmp_path_factory.mktemp("supervised")
    model = tiny_llama(root / "model")
    cache = {}

    def run(name, *, lines=None, again=0, epochs=2, batch_size=2, **params):
        lines = tuple(lines or lines_of(name))
        key = (name, lines, again, epochs, batch_size, *sorted(params.items()))
        if key not in cache:
            rows = write_lines(root / f"rows-{len(cache)}", "train.jsonl", lines)
            cache[key] = run_step(
                name,
                root,
                inputs={"model": model, "train": rows},
                params={
                    "batch_size": batch_size,
                    "epochs": epochs,
                    "learning_rate": "0.01",
                    "lora_r": 4,
                    **params,
                },
                portable=(1 + again, None),
            )
        return cache[key]

    run.model = model
    return run


@pytest.mark.parametrize("name", SUPERVISED)
def test_training_twice_gives_equal_bytes(name, trained):
    """ADPT-80: all that is written, the trace included."""
    one, two = trained(name), trained(name, again=1)
    for output in ("adapter", "metrics", "trace"):
        assert files_of(one.folder(output)) == files_of(two.folder(output))


@pytest.mark.parametrize(
    ("name", "params"),
    [("neftune", {"neftune_alpha": "0"}), ("label-smoothing", {"smoothing": "0"})],
)
def test_at_its_limit_it_is_sft_bit_for_bit(name, params, trained):
    """ADPT-81, ADPT-82."""
    found = files_of(trained(name, **params).folder("adapter"))
    assert found == files_of(trained("sft").folder("adapter"))
    assert found != files_of(trained(name).folder("adapter"))


def test_equal_weights_are_sft(trained):
    """ADPT-83: to rounding; a weight of 2 is a row twice."""
    from safetensors.torch import load

    def weights(ran):
        return load(files_of(ran.folder("adapter"))["adapter_model.safetensors"])

    pairs = list(enumerate(PROMPTS, 1))
    equal = [feedback(at, *pair, weight="3") for at, pair in pairs]
    plain = weights(trained("sft"))
    for key, one in weights(trained("weighted-sft", lines=equal)).items():
        torch.testing.assert_close(one, plain[key], rtol=1e-4, atol=1e-5)
    first, second = PROMPTS[:2]
    twice = [row(1, *first), row(2, *first), row(3, *second)]
    weighted = [feedback(1, *first, weight="2"), feedback(2, *second)]
    wanted = weights(trained("sft", lines=twice, batch_size=3, epochs=1))
    found = weights(trained("weighted-sft", lines=weighted, batch_size=2, epochs=1))
    for key, one in found.items():
        torch.testing.assert_close(one, wanted[key], rtol=1e-4, atol=1e-5)


def test_an_answer_that_is_not_wanted_is_refused(trained):
    """ADPT-83."""
    ran = trained("weighted-sft", lines=[feedback(1, "a", "b"), feedback(2, "c", "d", good=False)])
    assert ran.refusal()["where"].startswith("row 2")


def probabilities():
    numbers = LOGITS.double().numpy()
    return np.exp(numbers) / np.exp(numbers).sum(axis=1, keepdims=True)


def test_dft_weighs_every_token_by_its_own_probability():
    """ADPT-80: the formula by NumPy; the gradient is that of p log p with p held."""
    logits = LOGITS.clone().requires_grad_()
    losses = objective("dft").losses(logits, IDS)
    p = probabilities()[range(3), IDS]
    np.testing.assert_allclose(losses.detach().numpy(), -p * np.log(p), rtol=1e-5)
    losses.sum().backward()
    one_hot = np.eye(4)[IDS]
    wanted = p[:, None] * (probabilities() - one_hot)
    np.testing.assert_allclose(logits.grad.numpy(), wanted, atol=1e-6)


def test_dft_is_trls(trained, tmp_path):
    """ADPT-80: TRL's own loss of two rows, padded."""
    from datasets import Dataset
    from trl import SFTTrainer

    from kolm_build.core.numerics import Numerics
    from kolm_build.runtime.loading import load
    from kolm_build.steps._sequences import Tokeniser, answer_logits
    from kolm_build.steps._stage import _processing, sft_config
    from kolm_build.steps._training_params import TrainingParams

    given = load(trained.model, dtype=torch.float32)
    tokens = Tokeniser(model=given, max_length=512)
    rows = [
        tokens.sequence([{"content": prompt, "role": "user"}], answer, "")
        for prompt, answer in PROMPTS[:2]
    ]
    columns = {"input_ids": [list(one.ids) for one in rows], "labels": [one.labels for one in rows]}
    args = sft_config(TrainingParams.take(Fields({})), Numerics(cls="native-1"), tmp_path)
    args.loss_type = "dft"
    trainer = SFTTrainer(
        model=given.network,
        args=args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=_processing(given),
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        wanted = trainer.compute_loss(given.network, batch)
        found = [objective("dft").losses(*answer_logits(given.network, one)).sum() for one in rows]
    torch.testing.assert_close(
        sum(found) / sum(one.tokens for one in rows), wanted, rtol=1e-5, atol=1e-6
    )


def test_smoothed_labels_are_torchs():
    """ADPT-82."""
    found = objective("label-smoothing", smoothing="0.3").losses(LOGITS, IDS)
    wanted = torch.nn.functional.cross_entropy(LOGITS, IDS, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(found, wanted)


def test_noise_is_within_its_bound_and_the_rows_own():
    """ADPT-81: alpha / sqrt(L d); seeds of its own row decide it."""
    from kolm_build.steps._trainer import seeded

    made = objective("neftune", neftune_alpha="3")
    zeros = torch.zeros(1, 40, 10)

    def noise(seed):
        with seeded(seed):
            return made._noisy(None, None, zeros)

    most = 3 / 20
    assert noise(1).abs().max() <= most
    assert noise(1).abs().max() > 0.9 * most
    assert torch.equal(noise(1), noise(1))
    assert not torch.equal(noise(1), noise(2))


def test_a_curriculum_goes_from_easy_to_hard(trained):
    """ADPT-84: by the base model's own loss; in every epoch, and the other way round."""
    from kolm_build.runtime.loading import load
    from kolm_build.steps._sequences import Tokeniser, log_probability

    given = load(trained.model, dtype=torch.bfloat16)
    tokens = Tokeniser(model=given, max_length=512)
    losses = []
    with torch.no_grad():
        for prompt, answer in PROMPTS:
            one = tokens.sequence([{"content": prompt, "role": "user"}], answer, "")
            losses.append(-float(log_probability(given.network, one)) / one.tokens)
    wanted = [at + 1 for at in np.argsort(losses)]

    def order(**params):
        folder = trained("curriculum", **params).folder("trace")
        lines = map(strict_json.loads, (folder / "trace.jsonl").read_bytes().splitlines())
        return [number for line in lines if "step" in line for number in line["rows"]]

    assert order() == wanted * 2
    assert order(curriculum="hard-first") == wanted[::-1] * 2


def test_equal_losses_are_ordered_by_length_and_digest():
    """ADPT-84."""
    from kolm_build.steps._sequences import Continuation
    from kolm_build.steps.objectives import curriculum

    made = objective("curriculum")
    made._ids = ["sha256:2", "sha256:1", "sha256:0"]
    examples = [Continuation(ids=(1,) * size, start=1) for size in (3, 3, 4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            curriculum, "log_probability", lambda _network, one: torch.tensor(-1.0 * one.tokens)
        )
        made.start(torch.nn.Identity(), examples)
    assert made.order() == [1, 0, 2]


def test_every_token_of_a_text_but_the_first_has_a_loss(trained):
    """ADPT-85: transformers' own loss of the sequence is the oracle."""
    from kolm_build.runtime.loading import load

    given = load(trained.model, dtype=torch.float32)
    ids = torch.tensor([given.chat.answer_ids("it is a cough")])
    with torch.no_grad():
        wanted = given.network(input_ids=ids, labels=ids).loss.item()
    ran = trained(
        "texts", lines=[text(1, "it is a cough")], epochs=1, batch_size=1, compute_dtype="fp32"
    )
    table = (ran.folder("metrics") / "metrics.csv").read_text().splitlines()
    assert float(table[1].split(",")[1]) == pytest.approx(wanted, rel=1e-5)


def test_packed_texts_are_cut_where_a_block_is_full():
    """ADPT-86: nothing is lost but a token with nothing to tell."""
    from kolm_build.errors import InvalidDataError
    from kolm_build.steps.objectives.texts import packed

    blocks = packed([(1, 2, 0), (3, 0), (4, 5, 6, 0)], 4)
    assert [one.ids for one in blocks] == [(1, 2, 0, 3), (0, 4, 5, 6)]
    assert all(one.start == 1 for one in blocks)
    with pytest.raises(InvalidDataError, match="two tokens"):
        packed([(1, 2)], 1)


def test_a_text_that_is_too_long_is_refused_unless_it_is_packed(trained):
    """ADPT-86, SFT-4."""
    lines = [text(1, "a" * 60)]
    refusal = trained("texts", lines=lines, max_length=20).refusal()
    assert "too many tokens" in refusal["reason"]
    trained("texts", lines=lines, max_length=20, packing="blocks").folder("adapter")


@pytest.mark.parametrize("name", SUPERVISED)
def test_the_catalogues_defaults_are_the_steps_own(name):
    """ALG-2."""
    from kolm_build.core.catalogue.table import OBJECTIVES

    spelled = {one.name: one.default for one in OBJECTIVES[name].parameters}
    assert vars(objective(name, **spelled)) == vars(objective(name))
