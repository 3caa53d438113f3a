"""Training refuses what it cannot do, and its loss is TRL's own."""

from __future__ import annotations

import pytest
import torch

from kolm_build.core.numerics import Numerics
from kolm_build.numerics import native
from kolm_build.runtime.loading import load
from tests.steps_ml.calling import run_step, write_rows
from tests.support.models import tiny_llama

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

NUMERICS = Numerics(cls="native-1", seed=3)
PAIRS = [("Ada reports low mood", "mind"), ("Bo reports hives on both arms", "skin")]


@pytest.fixture
def inputs(tmp_path):
    return {
        "model": tiny_llama(tmp_path / "model"),
        "train": write_rows(tmp_path / "train", "train.jsonl", [*PAIRS, ("long " * 40, "mind")]),
    }


@pytest.fixture
def trainer(tmp_path, inputs):
    """A trainer on the first two rows, and the events it sends."""
    from kolm_build.steps import sft
    from kolm_build.steps._conversations import read_conversations
    from kolm_build.steps._sequences import Tokeniser
    from kolm_build.steps._stage import Stage, make_trainer

    native.apply(NUMERICS)
    model = load(inputs["model"])
    stage = Stage.parse({"compute_dtype": "fp32", "batch_size": 2}, sft.TAKE)
    rows = read_conversations(inputs["train"] / "train.jsonl")[:2]
    examples = sft.tokenise(Tokeniser(model=model, max_length=512), rows)
    return make_trainer(stage, model, examples, numerics=NUMERICS, scratch=tmp_path)


def lora(**params):
    from kolm_build.core.fields import Fields
    from kolm_build.steps.adapters.lora import Lora

    return Lora.take(Fields(params))


class Deaf:
    def progress(self, *args, **kwargs):
        pass


def test_a_row_that_is_too_long_is_refused_by_its_number(tmp_path, inputs):
    """SFT-4: nothing is ever cut off."""
    ran = run_step("sft", tmp_path, inputs=inputs, params={"max_length": 128})
    refusal = ran.refusal()
    assert refusal["code"] == "input.data"
    assert refusal["file"] == "train.jsonl"
    assert refusal["where"] == f"row 3 (sha256:{3:064x})"
    assert refusal["expected"] == "at most 128 tokens"
    assert not list(ran.outputs["adapter"].iterdir())


@pytest.mark.parametrize("name", ["lm_head", "query"])
def test_a_layer_that_cannot_be_adapted_is_refused(tmp_path, inputs, name):
    """SFT-5: the output head, and one that does not exist."""
    params = {"target_modules": f"q_proj,{name}"}
    refusal = run_step("sft", tmp_path, inputs=inputs, params=params).refusal()
    assert refusal["where"] == "target_modules"
    assert refusal["actual"] == repr(name)
    assert "q_proj" in refusal["expected"]


def test_only_the_answer_has_a_loss(inputs):
    """SFT-2, SFT-3."""
    from kolm_build.steps._conversations import read_conversations
    from kolm_build.steps._sequences import IGNORED, Tokeniser
    from kolm_build.steps.sft import tokenise

    model = load(inputs["model"])
    row = read_conversations(inputs["train"] / "train.jsonl")[0]
    (made,) = tokenise(Tokeniser(model=model, max_length=512), [row])
    ids, labels = list(made.ids), made.labels
    prompt = "<|im_start|>user\nAda reports low mood<|im_end|>\n<|im_start|>assistant\n"
    assert model.chat.tokenizer.decode(ids, skip_special_tokens=False) == f"{prompt}mind<|im_end|>"
    assert labels == [IGNORED] * (len(ids) - 5) + model.chat.answer_ids("mind")


def test_the_tokens_are_those_that_trl_makes(inputs, trainer):
    """SFT-2: TRL renders prompt and answer in one piece; the oracle for ours."""
    from kolm_build.steps._conversations import read_conversations

    tokenizer = trainer.processing_class
    model = load(inputs["model"])
    tokenizer.chat_template = model.chat.template
    for row in read_conversations(inputs["train"] / "train.jsonl"):
        answer = {"role": "assistant", "content": row.answer}
        whole = tokenizer.apply_chat_template([*row.messages, answer], tokenize=False)
        ours = model.chat.prompt_ids(row.messages) + model.chat.answer_ids(row.answer)
        wanted = tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert ours == wanted[: len(ours)]


def test_the_loss_and_its_gradients_are_those_of_trl(trainer):
    """SFT-3: TRL's own loss, which projects every position, is the oracle."""
    from trl import SFTTrainer

    batch = trainer.data_collator([trainer.train_dataset[index] for index in (0, 1)])
    count = (batch["labels"] >= 0).sum()
    found = {}
    for name, kind in (("ours", type(trainer)), ("theirs", SFTTrainer)):
        trainer.model.zero_grad()
        loss = kind.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=count)
        loss.backward()
        weights = trainer.model.named_parameters()
        found[name] = (
            loss.item(),
            {key: weight.grad for key, weight in weights if weight.grad is not None},
        )
    assert found["ours"][0] == pytest.approx(found["theirs"][0], rel=1e-6)
    assert found["ours"][1].keys() == found["theirs"][1].keys()
    for name, gradient in found["ours"][1].items():
        torch.testing.assert_close(gradient, found["theirs"][1][name], rtol=1e-4, atol=1e-6)


def test_adapters_are_trained_in_float32_over_a_frozen_base(trainer):
    trained = {name for name, one in trainer.model.named_parameters() if one.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {one.dtype for one in trainer.model.parameters() if one.requires_grad} == {torch.float32}


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_that_diverges_is_an_error(name, value):
    """NAT-6."""
    from types import SimpleNamespace

    from kolm_build.errors import StepFailedError
    from kolm_build.steps._trace import TraceCallback

    state = SimpleNamespace(global_step=7, max_steps=9)
    logs = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3} | {name: value}
    with pytest.raises(StepFailedError, match="diverged") as caught:
        TraceCallback(None, {}, Deaf()).on_log(None, state, None, logs=logs)
    assert caught.value.where == f"step 7: {name}"


def test_adapters_that_are_not_finite_are_never_written(tmp_path, trainer):
    """NAT-6."""
    from kolm_build.errors import StepFailedError

    with torch.no_grad():
        next(one for one in trainer.model.parameters() if one.requires_grad)[0, 0] = torch.nan
    with pytest.raises(StepFailedError, match="diverged"):
        lora().write(trainer.model, base=tmp_path, out=tmp_path)
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_a_trainer_sends_no_telemetry(trainer, monkeypatch):
    """SFT-7."""
    import trl.trainer.base_trainer as base

    def refuse(*args, **kwargs):
        raise AssertionError("something left the machine")

    monkeypatch.setattr(base, "send_telemetry", refuse)
    trainer._send_telemetry()


def test_an_adapter_can_be_stored_in_bf16(tmp_path, trainer, inputs):
    from safetensors.torch import load_file

    lora(adapter_dtype="bf16").write(trainer.model, base=inputs["model"], out=tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
