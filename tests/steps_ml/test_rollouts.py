"""Completions of a tiny model, and the objectives over them, from end to end."""

from __future__ import annotations

import csv
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances
from kolm_build.numerics.kernels import LIBRARY
from kolm_build.steps.table import REINFORCEMENT
from tests.steps_ml.calling import (
    files_of,
    pair_row,
    prompt_row,
    run_step,
    steps_row,
    write_lines,
    write_rows,
)
from tests.support.models import tiny_llama

pytestmark = [
    pytest.mark.ml,
    pytest.mark.xdist_group("tiny-training"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not LIBRARY.is_file(), reason="the portable kernels are not compiled"),
]

PROMPTS = ("Say a letter", "Say b", "What now?", "Another one, please")
REWARD = """
def reward(prompt, completion, reference, fields):
    return sum(one.isascii() for one in completion) / max(len(completion), 1)
"""
SMALL = {"max_new_tokens": 4, "compute_dtype": "fp32", "learning_rate": "0.01", "lora_r": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, rows of every schema, a reward."""
    root = tmp_path_factory.mktemp("world")
    (root / "reward").mkdir()
    (root / "reward" / "reward.py").write_text(REWARD)
    numbered = list(enumerate(PROMPTS, 1))
    return SimpleNamespace(
        model=tiny_llama(root / "model"),
        reward=root / "reward",
        prompts=write_lines(
            root / "prompts",
            "train.jsonl",
            [prompt_row(at, one, ".*[a-z].*") for at, one in numbered],
        ),
        pairs=write_lines(
            root / "pairs", "train.jsonl", [pair_row(at, one, "aaa", "zzz") for at, one in numbered]
        ),
        answers=write_rows(root / "answers", "train.jsonl", [(one, "good") for one in PROMPTS]),
        steps=write_lines(
            root / "steps",
            "train.jsonl",
            [steps_row(at, one, ["one", "two"], [True, False]) for at, one in numbered],
        ),
    )


def inputs_of(world, name):
    schema = {"reward-bt": "pairs", "prm": "steps", "spin": "answers"}.get(name, "prompts")
    inputs = {"model": world.model, "train": getattr(world, schema)}
    judged = schema == "prompts" and name != "self-rewarding"
    return inputs | ({"reward": world.reward} if judged else {})


def params_of(name, **more):
    given = SMALL | more
    if name in ("reward-bt", "prm"):
        del given["max_new_tokens"]
    return given


def grouped(name):
    """Fewer completions than a recipe would ask for, where it may ask."""
    from kolm_build.core.catalogue.table import OBJECTIVES

    asked = {one.name for one in OBJECTIVES[name].parameters}
    return {"generations": 2} if "generations" in asked else {}


# --------------------------------------------------------------------------------------- drawing


def sampling(**changes):
    from kolm_build.steps._rollouts import Sampling

    usual = {"generations": 3, "max_new_tokens": 6, "temperature": 0.7, "top_p": 0.95}
    return Sampling(**(usual | changes))


def test_what_decides_a_draw_is_the_digest_of_seed_completion_and_token():
    """RL-3."""
    from kolm_build.runtime.draws import draw_number

    text = b"kolm_build 2026 sample v1 7 1 5"
    assert draw_number(7, 1, 5) == int.from_bytes(sha256(text).digest()[:8])
    keys = ((7, 1, 5), (8, 1, 5), (7, 2, 5), (7, 1, 6))
    assert len({draw_number(*key) for key in keys}) == 4


def test_a_draw_is_the_inverse_of_the_distribution_function():
    """RL-4: as often as its probability says, and where NumPy says."""
    from kolm_build.runtime.draws import draw_number, drawn

    logits = torch.tensor([[1.0, -0.5, 0.3, 2.0, -4.0]])
    numbers = [draw_number(0, 0, token) for token in range(4000)]
    found = drawn(logits.expand(4000, 5), sampling(top_p=1.0).distribution, numbers)
    chances = np.exp(logits[0].double().numpy() / 0.7)
    chances /= chances.sum()
    wanted = np.searchsorted(chances.cumsum(), np.array(numbers, dtype=float) / 2.0**64)
    assert np.mean(np.array(found) != wanted) < 0.001  # float32 at the very edges
    counts = np.bincount(found, minlength=5)
    deviations = (counts - 4000 * chances) / np.sqrt(4000 * chances * (1 - chances))
    assert np.abs(deviations).max() < 4


def test_the_first_and_the_last_number_give_the_first_and_the_last_token_there_is():
    """RL-4: a token of no probability is never drawn."""
    from kolm_build.runtime.draws import drawn

    logits = torch.tensor([[-200.0, 1.0, 0.0, 0.5, -200.0]])
    assert drawn(logits, sampling().distribution, [0]) == [1]
    assert drawn(logits, sampling(top_p=1.0).distribution, [2**64 - 1]) == [3]


def test_a_nucleus_is_the_fewest_likeliest_tokens():
    """RL-5: the lower id first among equals."""
    from kolm_build.runtime.draws import nucleus

    weights = np.array([[10, 40, 10, 30, 10], [100, 0, 0, 0, 0]])
    assert nucleus(weights, 0.7).tolist() == [[0, 40, 0, 30, 0], [100, 0, 0, 0, 0]]
    assert nucleus(weights, 0.71).tolist()[0] == [10, 40, 0, 30, 0]
    assert nucleus(weights, 0.01).tolist()[0] == [0, 40, 0, 0, 0]


@pytest.fixture(scope="module")
def policy(world):
    """A model that speaks, with adapters that do something."""
    from kolm_build.runtime.loading import load
    from kolm_build.steps.adapters.lora import Lora, LoraParams

    model = load(world.model, dtype=torch.float32)
    torch.manual_seed(5)
    change = Lora(
        LoraParams(
            lora_r=4, lora_alpha=8, lora_dropout=0.0, target_modules=(), adapter_dtype="fp32"
        )
    )
    network = change.attach(model.network)
    for name, one in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(one.data, std=0.3)
    request = SimpleNamespace(numerics=SimpleNamespace(cls="portable-1"))
    given = SimpleNamespace(model=model, request=request, change=change)
    return SimpleNamespace(network=network.eval(), given=given, chat=model.chat, change=change)


@pytest.fixture
def portable():
    """The portable kernels, and their guard."""
    from kolm_build.numerics.apply import applied

    circumstances = Circumstances(kernels=str(LIBRARY), threads=1)
    with applied(Numerics(cls="portable-1", seed=3), circumstances), torch.no_grad():
        yield


def prompts_of(policy):
    return [policy.chat.prompt_ids([{"role": "user", "content": one}]) for one in PROMPTS]


def test_a_completion_does_not_depend_on_what_is_drawn_beside_it(policy, portable, monkeypatch):
    """RL-2: nor on how many at once, and it is that of a network without a cache."""
    from kolm_build.steps import _rollouts

    sampler = _rollouts.Sampler(policy.given, sampling())
    prompts, seeds = prompts_of(policy), [11, 12, 13, 14]
    together = sampler.draw(policy.network, prompts, seeds)
    monkeypatch.setattr(_rollouts, "ROWS_AT_ONCE", 1)
    assert sampler.draw(policy.network, prompts, seeds) == together
    reordered = sampler.draw(policy.network, prompts[::-1], seeds[::-1])[::-1]
    assert reordered == together
    for prompt, seed, row in zip(prompts, seeds, together, strict=True):
        assert sampler.draw(policy.network, [prompt], [seed]) == [row]
        for number, one in enumerate(row):
            assert one.sequence.ids == slowly(policy, prompt, seed, number)
    assert len({one.sequence.ids for row in together for one in row}) == 12
    assert sampler.draw(policy.network, prompts, seeds, first=3) != together


def slowly(policy, prompt, seed, number):
    """A completion, token by token, without a cache."""
    from kolm_build.runtime.draws import draw_number, drawn

    ids = list(prompt)
    for token in range(6):
        seen = torch.tensor([ids])
        logits = policy.network(input_ids=seen, attention_mask=torch.ones_like(seen)).logits
        ids += drawn(
            logits[:, -1].float(), sampling().distribution, [draw_number(seed, number, token)]
        )
        if ids[-1] in policy.chat.stop_ids:
            break
    return tuple(ids)


@pytest.mark.parametrize("name", ["prefix-tuning", "prompt-tuning"])
def test_a_network_with_vectors_before_its_rows_is_drawn_from_too(world, portable, name):
    """RL-2: where there can be no cache."""
    from kolm_build.core.fields import Fields
    from kolm_build.runtime.loading import load
    from kolm_build.steps._reward_head import hidden_states
    from kolm_build.steps._rollouts import Sampler
    from kolm_build.steps.adapters.table import ADAPTERS

    model = load(world.model, dtype=torch.float32)
    change = ADAPTERS[name](Fields({}))
    network = change.attach(model.network).eval()
    request = SimpleNamespace(numerics=SimpleNamespace(cls="portable-1"))
    given = SimpleNamespace(model=model, request=request, change=change)
    here = SimpleNamespace(network=network, chat=model.chat)
    prompts = prompts_of(here)[:2]
    said = Sampler(given, sampling(generations=2)).draw(network, prompts, [5, 6])
    for prompt, seed, row in zip(prompts, (5, 6), said, strict=True):
        for number, one in enumerate(row):
            assert one.sequence.ids == slowly(here, prompt, seed, number)
    assert len(hidden_states(network, prompts[0])) == len(prompts[0])


def test_a_mixture_lies_between_the_policy_and_its_reference(policy, portable):
    """RL-7: at 0 it is the one, at 1 the other."""
    from kolm_build.steps._rollouts import Sampler

    sampler = Sampler(policy.given, sampling(generations=1))
    prompts, seeds = prompts_of(policy), [11, 12, 13, 14]

    def reference():
        return policy.change.reference(policy.network)

    def mixed(share):
        return sampler.draw_mixed(policy.network, reference, prompts, seeds, share=share, first=0)

    own = [row[0] for row in sampler.draw(policy.network, prompts, seeds)]
    with reference():
        other = [row[0] for row in sampler.draw(policy.network, prompts, seeds)]
    assert own != other
    assert mixed(0.0) == own
    assert mixed(1.0) == other
    assert mixed(0.5) not in (own, other)


def test_the_likeliest_completion_is_the_runtimes(policy, portable):
    """RL-6."""
    from kolm_build.steps._rollouts import Sampler

    sampler = Sampler(policy.given, sampling())
    for prompt, one in zip(
        prompts_of(policy), sampler.greedy(policy.network, prompts_of(policy)), strict=True
    ):
        ids = torch.tensor([one.sequence.ids])
        likeliest = policy.network(input_ids=ids).logits[0].argmax(-1)
        assert likeliest[len(prompt) - 1 : -1].tolist() == list(one.sequence.ids[len(prompt) :])


# ------------------------------------------------------------------------------------- training


def outputs(world, root, name, *, inputs=None, env=None, threads=1, **params):
    ran = run_step(
        name,
        root,
        inputs=inputs or inputs_of(world, name),
        params=params_of(name, **params),
        portable=(threads, None),
        env=env,
    )
    return {part: files_of(ran.folder(part)) for part in ("adapter", "metrics", "trace")}


def same(one, other):
    """Equal but for how the rows were split, which the trace says."""
    assert one["adapter"] == other["adapter"]
    assert one["metrics"] == other["metrics"]
    assert one["trace"]["trace.jsonl"] == other["trace"]["trace.jsonl"]


@pytest.mark.parametrize("name", REINFORCEMENT)
def test_the_bytes_do_not_depend_on_micro_batches(world, tmp_path, name):
    """RL-1, RL-8, ALG-3: adapter, figures, samples and trace, of every objective."""
    params = {"max_steps": 2, **grouped(name)}
    whole = outputs(world, tmp_path, name, batch_size=4, **params)
    parts = outputs(world, tmp_path, name, batch_size=1, gradient_accumulation=4, **params)
    same(whole, parts)
    table = list(csv.DictReader(whole["metrics"]["metrics.csv"].decode().splitlines()))
    assert len(table) == 2
    if name not in ("reward-bt", "prm"):
        assert len(table[0]["samples"]) == 16
        int(table[0]["samples"], 16)


def test_the_bytes_do_not_depend_on_process_threads_or_hash_seed(world, tmp_path):
    """RL-1, RL-11."""
    params = {"batch_size": 2, "max_steps": 2, "iterations": 2, "generations": 3}
    here = outputs(world, tmp_path, "grpo", **params)
    env = {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "2"}
    assert outputs(world, tmp_path, "grpo", env=env, threads=2, **params) == here


def test_training_raises_the_mean_reward(world, tmp_path):
    """RL-30."""
    made = outputs(
        world, tmp_path, "grpo", batch_size=4, epochs=10, schedule="constant", beta="0", lora_r=8
    )
    table = list(csv.DictReader(made["metrics"]["metrics.csv"].decode().splitlines()))
    rewards = [float(line["reward"]) for line in table]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1, rewards


def test_completions_are_used_again_for_as_many_steps_as_asked(world, tmp_path):
    """RL-31: the ratio leaves 1 from the second step on."""
    made = outputs(
        world, tmp_path, "dr-grpo", batch_size=4, iterations=2, epochs=2, epsilon="0.001"
    )
    table = list(csv.DictReader(made["metrics"]["metrics.csv"].decode().splitlines()))
    samples = [line["samples"] for line in table]
    assert len(samples) == 4
    assert samples[0] == samples[1] != samples[2] == samples[3]
    assert float(table[0]["clipped"]) == 0.0 < float(table[1]["clipped"])


def test_a_reward_model_is_trained_merged_and_judges(world, tmp_path):
    """RL-22, RL-23, RL-24: the head goes with the adapter and then with the model."""
    trained = run_step(
        "reward-bt",
        tmp_path,
        inputs=inputs_of(world, "reward-bt"),
        params=params_of("reward-bt", batch_size=4, epochs=8),
        portable=(1, None),
    )
    adapter = trained.folder("adapter")
    merged = run_step(
        "merge", tmp_path, inputs={"model": world.model, "adapter": adapter}, portable=(1, None)
    ).folder()
    head = "reward_head.safetensors"
    assert (merged / head).read_bytes() == (adapter / head).read_bytes()
    assert judge(merged, "aaa") > judge(merged, "zzz")
    inputs = {"model": world.model, "train": world.prompts, "reward_model": merged}
    made = outputs(world, tmp_path, "grpo", inputs=inputs, reward_by="model", batch_size=4)
    (line,) = csv.DictReader(made["metrics"]["metrics.csv"].decode().splitlines())
    assert float(line["reward_std"]) > 0.0


def judge(folder, answer):
    from kolm_build.runtime.loading import load
    from kolm_build.steps._reward_head import RewardHead, outcome

    model = load(folder, dtype=torch.float32)
    messages = [{"role": "user", "content": PROMPTS[0]}]
    with torch.no_grad():
        return outcome(model, RewardHead.read(folder), messages, answer)


def test_a_process_reward_is_the_product_of_its_steps(world, tmp_path):
    """RL-21, RL-24."""
    from kolm_build.runtime.loading import load
    from kolm_build.steps._reward_head import RewardHead, hidden_states, outcome, step_ends

    model = load(world.model, dtype=torch.float32)
    size = model.network.get_input_embeddings().weight.shape[1]
    head = RewardHead(kind="process", weight=torch.linspace(-1, 1, size))
    messages = [{"role": "user", "content": PROMPTS[0]}]
    prompt = model.chat.prompt_ids(messages)
    ids, ends = step_ends(model.chat, prompt, ["one", "two"])
    assert ids[: len(prompt)] == prompt
    assert model.chat.text([ids[end] for end in ends]) == "\n\n"
    with torch.no_grad():
        found = outcome(model, head, messages, "one\n \ntwo")
        wanted = head.of(hidden_states(model.network, ids)[ends]).sigmoid()
        assert outcome(model, head, messages, " \n") == 0.0
    assert found == pytest.approx(float(wanted[0] * wanted[1]))


def test_every_weight_can_be_trained_and_the_reference_stays(world, tmp_path):
    """RL-32: with a value head beside it, which is not kept."""
    inputs = inputs_of(world, "ppo")
    ran = run_step(
        "ppo",
        tmp_path,
        inputs=inputs,
        params={"adapter": "full", "batch_size": 4, "epochs": 2, "compute_dtype": "fp32",
                "max_new_tokens": 4, "learning_rate": "0.001"},
        portable=(1, None),
        outputs=("model", "metrics", "trace"),
    )  # fmt: skip
    made = files_of(ran.folder("model"))
    assert sorted(made) == sorted(files_of(world.model))
    table = list(csv.DictReader((ran.folder("metrics") / "metrics.csv").open()))
    assert float(table[0]["divergence"]) == 0.0 < float(table[1]["divergence"])


@pytest.mark.parametrize(
    "name", ["grpo", "nash-md", "online-dpo", "self-rewarding", "spin", "star", "xpo"]
)
def test_the_reference_of_every_weight_is_there_for_who_asks(world, tmp_path, name):
    """ALG-5."""
    params = params_of(name, adapter="full", batch_size=2, max_steps=2, **grouped(name))
    del params["lora_r"]
    ran = run_step(
        name,
        tmp_path,
        inputs=inputs_of(world, name),
        params=params,
        portable=(1, None),
        outputs=("model", "metrics", "trace"),
    )
    assert sorted(files_of(ran.folder("model"))) == sorted(files_of(world.model))


def test_a_prompt_must_leave_room_for_an_answer(world, tmp_path):
    """RL-9."""
    ran = run_step(
        "grpo",
        tmp_path,
        inputs=inputs_of(world, "grpo"),
        params=params_of("grpo", max_length=20),
        portable=(1, None),
    )
    assert ran.refusal()["reason"] == "a row has too many tokens"


def test_a_reward_that_fails_fails_the_step(world, tmp_path):
    """RL-14."""
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "reward.py").write_text(
        "def reward(prompt, completion, reference, fields):\n    return 1 / ('b' not in prompt)\n"
    )
    inputs = inputs_of(world, "grpo") | {"reward": folder}
    ran = run_step(
        "grpo", tmp_path, inputs=inputs, params=params_of("grpo", batch_size=4), portable=(1, None)
    )
    refusal = ran.refusal()
    assert refusal["code"] == "build.step-failed"
    assert refusal["where"].startswith("row 2 (sha256:")
    assert refusal["where"].endswith("completion 1")
    assert "ZeroDivisionError" in refusal["actual"]


def test_a_training_is_put_aside_between_completions_and_not_within(world, tmp_path):
    """RL-31, RL-32, ALG-11: the value head goes along."""
    params = params_of("ppo", batch_size=2, iterations=2, max_steps=4)

    def run(name, *, checkpoint=None, stop=0):
        inputs = inputs_of(world, "ppo") | ({"checkpoint": checkpoint} if checkpoint else {})
        return run_step(
            "ppo",
            tmp_path / name,
            inputs=inputs,
            params=params | ({"stop_after": stop} if stop else {}),
            outputs=("checkpoint",) if stop else None,
            portable=(1, None),
        )

    whole, first = run("whole"), run("first", stop=2)
    then = run("then", checkpoint=first.folder("checkpoint"))
    for output in ("adapter", "metrics", "trace"):
        assert files_of(then.folder(output)) == files_of(whole.folder(output)), output
    assert run("within", stop=3).refusal()["where"] == "stop_after"


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any),
    st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99]),
)
def test_a_nucleus_has_its_probability_and_no_token_too_many(weights, top_p):
    """RL-5."""
    from kolm_build.runtime.draws import nucleus

    (kept,) = nucleus(np.array([weights]), top_p)
    left = sorted(one for one in kept if one)
    assert sum(left) >= top_p * sum(weights)
    assert sum(left[1:]) < top_p * sum(weights)
    assert min(left) >= max((a for a, b in zip(weights, kept, strict=True) if not b), default=0)
