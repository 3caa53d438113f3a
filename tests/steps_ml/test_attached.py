"""What cannot be merged is used as it was trained: beside its base's weights."""

from __future__ import annotations

import json
import shutil
from math import prod

import pytest
import torch

from kolm_build.core import cost, strict_json
from kolm_build.core.attached_files import FILES
from kolm_build.core.request import Circumstances
from kolm_build.core.safetensors import PREFIX_BYTES, header_length, parse_header
from kolm_build.errors import InvalidRecordError
from tests.steps_ml.calling import files_of, run_step, write_rows
from tests.support.models import tiny_llama, tiny_rows

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

PROMPTS = [[1, 50, 60, 70, 80], [1, 90, 20], [1, 33, 44, 55, 66, 77, 88, 99]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    rows = [json.loads(line) for line in tiny_rows(root / "rows").read_text().splitlines()][:24]
    pairs = [(one["text"], one["ward"]) for one in rows]
    return {
        "model": tiny_llama(root / "model"),
        "train": write_rows(root / "train", "train.jsonl", pairs[:12]),
        "holdout": write_rows(root / "holdout", "holdout.jsonl", pairs[12:]),
    }


OWN = {
    "moe-lora": {"lora_r": 4},
    "lora-moe": {"lora_r": 4},
    "x-lora": {"xlora_depth": 2, "xlora_size": 8},
}
MIXTURES = tuple(OWN)


@pytest.fixture(scope="module", params=[*MIXTURES, "prefix-tuning", "prompt-tuning"])
def trained(request, inputs, tmp_path_factory):
    """The network that was trained, and the folder of its adapter."""
    return train(request.param, inputs, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def mixture(inputs, tmp_path_factory):
    return train("moe-lora", inputs, tmp_path_factory.mktemp("mixture"))[1]


def train(name, inputs, root, **more):
    from kolm_build.steps.adapters.table import ADAPTERS

    kept, adapter = [], ADAPTERS[name].__self__
    mixed = two_adapters(inputs, root, **more) if name == "x-lora" else {}
    write = adapter.write
    given = {"compute_dtype": "fp32", "learning_rate": "5e-2", "max_steps": 3}
    given |= OWN.get(name, {"virtual_tokens": 3}) | more
    with pytest.MonkeyPatch.context() as patch:

        def writing(self, network, **where):
            kept.append(network)
            write(self, network, **where)

        patch.setattr(adapter, "write", writing)
        ran = run_step(
            "sft",
            root,
            inputs={role: inputs[role] for role in ("model", "train")} | mixed,
            params={"adapter": name, "batch_size": 4, **given},
            portable=(1, None),
        )
    return kept[0].eval(), ran.folder("adapter")


def two_adapters(inputs, root, **more):
    """Two LoRAs that differ in what is stored and how it is scaled."""
    given = {"batch_size": 4, "learning_rate": "5e-2", "max_steps": 3, "compute_dtype": "fp32"}
    given |= {"lora_r": 4}
    ways = ({"adapter": "lora", "adapter_dtype": "bf16"}, {"adapter": "rslora"})
    return {
        f"adapters-{number}": run_step(
            "sft",
            root,
            inputs={role: inputs[role] for role in ("model", "train")},
            params=given | way | more,
            portable=(1, None),
        ).folder("adapter")
        for number, way in enumerate(ways, 1)
    }


@pytest.fixture
def attached(inputs, trained, tmp_path):
    return attach(inputs["model"], trained[1], tmp_path).folder()


@pytest.fixture
def mixed(inputs, mixture, tmp_path):
    return attach(inputs["model"], mixture, tmp_path).folder()


def attach(model, adapter, place):
    return run_step("attach", place, inputs={"model": model, "adapter": adapter})


def portable():
    from kolm_build.core.numerics import Numerics
    from kolm_build.numerics.apply import applied
    from kolm_build.numerics.kernels import LIBRARY

    return applied(
        Numerics(cls="portable-1"), Circumstances(kernels=str(LIBRARY), threads=1, isa=None)
    )


def test_a_model_with_an_adapter_is_the_base_and_the_adapter_byte_for_byte(
    inputs, trained, attached
):
    """ALG-20."""
    assert files_of(attached) == files_of(inputs["model"]) | files_of(trained[1])
    assert set(FILES) == files_of(trained[1]).keys()


def test_it_computes_what_was_trained_bit_for_bit(inputs, trained, attached):
    """GEN-52, GEN-54, GEN-56: what was trained changed something."""
    from kolm_build.runtime.loading import load

    model, base = load(attached), load(inputs["model"])
    with portable(), torch.no_grad():
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            wanted = trained[0](input_ids=ids).logits
            assert torch.equal(model.network(input_ids=ids).logits, wanted)
            assert not torch.equal(base.network(input_ids=ids).logits, wanted)


def test_prompts_read_before_and_prompts_beside_change_no_bit(attached):
    """GEN-55, GEN-51, GEN-58: rows of any batch and cache; the network itself is asked."""
    from kolm_build.runtime.decoder_loading import decoding_speaker
    from kolm_build.runtime.files import find_model
    from kolm_build.runtime.generate import read_prompts, reads
    from kolm_build.runtime.loading import load
    from kolm_build.runtime.modules import keep
    from kolm_build.runtime.prompt_cache import PromptCache
    from kolm_build.runtime.ragged import joined

    assert decoding_speaker(find_model(attached)) is None
    network = load(attached).network
    with portable():
        cache = PromptCache(reads(network), keep)
        cache.read([*PROMPTS[0][:3], 9, 9])
        for prompt in PROMPTS:
            alone = read_prompts(network, [prompt])
            assert torch.equal(cache.read(prompt).logits, alone.logits)
        together = joined([read_prompts(network, [one]) for one in PROMPTS], room=4)
        said = together.read(torch.tensor([5, 6, 7]))
        for row, (prompt, token) in enumerate(zip(PROMPTS, [5, 6, 7], strict=True)):
            wanted = read_prompts(network, [prompt]).read(torch.tensor([token]))
            assert torch.equal(said[row : row + 1], wanted)


def test_it_is_judged_and_scored_whatever_the_batch_and_the_processor(inputs, attached, tmp_path):
    """ALG-20, EVAL-2, EVAL-13: evaluation and score take the folder as they take any model."""
    given = {"max_new_tokens": 3, "labels": "bone\nlung\nmind\nskin", "metric": "label"}
    given["verifier"] = "labels"
    evaluated = [
        run_step(
            "evaluate",
            tmp_path / str(size),
            inputs={"model": attached, "holdout": inputs["holdout"]},
            params={**given, "batch_size": size},
            portable=ways,
        ).folder()
        for size, ways in ((1, (1, None)), (8, (2, "avx2")))
    ]
    assert files_of(evaluated[0]) == files_of(evaluated[1])
    budgets = dict.fromkeys(
        (
            *("size_budget_bytes", "latency_budget_us", "cost_budget_microusd"),
            *("device_flops_per_s", "device_bytes_per_s", "device_microusd_per_hour"),
        ),
        10**6,
    )
    scored = run_step(
        "score", tmp_path, inputs={"model": attached, "evaluation": evaluated[0]}, params=budgets
    )
    told = strict_json.loads((scored.folder() / "kscore.json").read_bytes())
    size = sum((attached / name).stat().st_size for name in files_of(attached) if "safet" in name)
    assert told["evidence"]["weight_bytes"] == size


def test_all_that_is_computed_is_counted(inputs, trained, attached):
    """EVAL-17, EVAL-18: from the network, and from the files' headers alone."""
    from kolm_build.runtime.loading import load
    from kolm_build.steps._counts import Architecture

    base, whole = (Architecture.of(load(one).network) for one in (inputs["model"], attached))
    beside = sum(prod(one.shape) for one in tensors(attached / "adapter_model.safetensors"))
    said = json.loads((trained[1] / "adapter_config.json").read_bytes())
    is_mixture, is_twice = "experts" in said, "widths" in said
    if not is_twice:
        assert whole.body - base.body == (beside if is_mixture else 0)
    assert whole.virtual_tokens == (0 if is_mixture else 3)
    assert whole.layers == base.layers * (2 if is_twice else 1)
    assert whole.parameters - base.parameters == beside
    assert whole.parameter_bytes - base.parameter_bytes == 4 * beside
    config = json.loads((attached / "config.json").read_bytes())
    files = ("model.safetensors", "adapter_model.safetensors")
    found = {one.name: one for name in files for one in tensors(attached / name)}
    sizes = cost.Sizes.of(config, found)
    assert sizes.flops(7, 3) == whole.flops(7, 3)
    assert sizes.bytes_moved(7, 3) == whole.bytes_moved(7, 3)


@pytest.mark.parametrize("name", ["moe-lora", "x-lora", "prefix-tuning"])
def test_what_is_stored_in_half_is_counted_and_computed_as_it_is_stored(inputs, name, tmp_path):
    """EVAL-17, GEN-54: the verifier, who sees the files alone, counts the same bytes."""
    from kolm_build.runtime.loading import load
    from kolm_build.steps._counts import Architecture

    adapter = train(name, inputs, tmp_path, adapter_dtype="bf16")[1]
    folder = attach(inputs["model"], adapter, tmp_path).folder()
    files = ("model.safetensors", "adapter_model.safetensors")
    found = {one.name: one for path in files for one in tensors(folder / path)}
    beside = [one for one in tensors(adapter / files[1]) if one.dtype != "BF16"]
    assert not beside
    sizes = cost.Sizes.of(json.loads((folder / "config.json").read_bytes()), found)
    whole = Architecture.of(load(folder).network)
    assert sizes.bytes_moved(7, 3) == whole.bytes_moved(7, 3)
    assert sizes.flops(7, 3) == whole.flops(7, 3)


def tensors(path):
    data = path.read_bytes()
    end = PREFIX_BYTES + header_length(data[:PREFIX_BYTES], len(data))
    return parse_header(data[PREFIX_BYTES:end], len(data)).tensors


def edited(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_bytes(strict_json.dumps(json.loads(path.read_bytes()) | changes))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"experts": 3}, "top_k"),
        ({"r": 5}, "adapter_model.safetensors: model.layers.0.mlp.down_proj.down"),
        ({"r": 0}, "r"),
        ({"routing": "hard"}, "routing"),
        ({"peft_type": "LORA"}, "peft_type"),
        ({"peft_type": "PREFIX_TUNING"}, "num_virtual_tokens"),
        ({"target_modules": ["down_proj", "no_proj"]}, "target_modules"),
        ({"target_modules": ["down_proj", 3]}, "target_modules[1]"),
        ({"target_modules": ["down_proj"]}, "adapter_model.safetensors: model.layers.0."),
        ({"lora_dropout": 1}, "lora_dropout"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(mixed, changes, where):
    """GEN-53."""
    attached = mixed
    from kolm_build.runtime.loading import load

    said = json.loads((attached / "adapter_config.json").read_bytes())
    if changes == {"experts": 3}:
        changes = {"experts": 1, "top_k": 2}
    edited(attached, **changes)
    assert said != json.loads((attached / "adapter_config.json").read_bytes())
    with pytest.raises(InvalidRecordError) as caught:
        load(attached)
    assert caught.value.where.startswith(where)
    assert caught.value.file == str(attached)


@pytest.mark.parametrize("name", FILES)
def test_a_part_of_an_adapter_is_none(mixed, name):
    """GEN-53: the base does not answer in its place."""
    attached = mixed
    from kolm_build.runtime.loading import load

    (attached / name).unlink()
    with pytest.raises(InvalidRecordError, match="part of the adapter is missing") as caught:
        load(attached)
    assert caught.value.where == name


def test_transformers_does_not_run_the_base_in_its_place(attached):
    """ALG-21: it finds the adapter's configuration, and refuses the kind."""
    from transformers import AutoModelForCausalLM

    with pytest.raises(
        (KeyError, ValueError), match=r"KOLM_MOE_LORA|KOLM_X_LORA|does not support prompt"
    ):
        AutoModelForCausalLM.from_pretrained(attached)


def test_an_adapter_of_other_weights_is_refused(inputs, mixture, tmp_path):
    """ALG-20."""
    from kolm_build.steps._tensors import changed
    from kolm_build.steps._weights import read_weights, write_weights

    other = shutil.copytree(inputs["model"], tmp_path / "other")
    weights = read_weights(inputs["model"] / "model.safetensors")
    (other / "model.safetensors").unlink()
    write_weights(other / "model.safetensors", [changed(one, lambda x: x * 2) for one in weights])
    refusal = attach(other, mixture, tmp_path).refusal()
    assert (refusal["file"], refusal["where"]) == ("base.json", "weights")


def test_an_adapter_that_does_not_say_what_it_was_trained_on_is_refused(inputs, mixture, tmp_path):
    """ALG-20."""
    adapter = shutil.copytree(mixture, tmp_path / "adapter")
    (adapter / "base.json").unlink()
    assert attach(inputs["model"], adapter, tmp_path).refusal()["file"] == "base.json"


@pytest.mark.parametrize("step", ["attach", "combine", "merge", "quantise", "sft"])
def test_no_step_builds_on_such_a_model(inputs, mixture, mixed, step, tmp_path):
    """ALG-22: what changes weights would leave the adapter out, or change what it belongs to."""
    params = {"combine": {"algorithm": "soup"}, "quantise": {"scheme": "w8a16", "method": "rtn"}}
    given = {"model": mixed, "adapter": mixture, "train": inputs["train"]}
    given |= {"models-1": mixed, "models-2": mixed}
    roles = {
        "combine": ("model", "models-1", "models-2"),
        "quantise": ("model",),
        "sft": ("model", "train"),
    }
    refusal = run_step(
        step,
        tmp_path / "x",
        inputs={role: given[role] for role in roles.get(step, ("model", "adapter"))},
        params=params.get(step, {}),
    ).refusal()
    assert refusal["where"] == "inputs.model", refusal


@pytest.mark.parametrize("name", ["prefix-tuning", "prompt-tuning"])
@pytest.mark.parametrize(
    "case",
    [
        ({"num_virtual_tokens": 4}, "adapter_model.safetensors: prompt_embeddings"),
        ({"num_layers": 0}, "num_layers"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"token_dim": 16}, "adapter_model.safetensors: prompt_embeddings"),
        ({"also": 1}, "also"),
    ],
)
def test_virtual_tokens_that_do_not_fit_are_refused(inputs, name, case, tmp_path, virtual):
    """GEN-53, ALG-24."""
    from kolm_build.runtime.loading import load

    changes, where = case
    attached = attach(inputs["model"], virtual[name], tmp_path).folder()
    edited(attached, **changes)
    with pytest.raises(InvalidRecordError) as caught:
        load(attached)
    assert caught.value.where == where


@pytest.fixture(scope="module")
def virtual(inputs, tmp_path_factory):
    names = ("prefix-tuning", "prompt-tuning")
    return {name: train(name, inputs, tmp_path_factory.mktemp(name))[1] for name in names}


@pytest.mark.parametrize("name", ["prefix-tuning", "prompt-tuning"])
def test_the_window_holds_the_virtual_tokens_too(inputs, name, virtual, tmp_path):
    """GEN-57."""
    from kolm_build.runtime.loading import load

    attached = attach(inputs["model"], virtual[name], tmp_path).folder()
    assert load(inputs["model"]).window - load(attached).window == 3


def test_keys_of_another_model_are_refused(inputs, virtual, tmp_path):
    """ALG-24: of other heads, where the numbers would fit all the same."""
    from kolm_build.runtime.loading import load

    attached = attach(inputs["model"], virtual["prefix-tuning"], tmp_path).folder()
    said = json.loads((attached / "adapter_config.json").read_bytes())
    edited(attached, num_attention_heads=said["num_attention_heads"] * 2)
    with pytest.raises(InvalidRecordError) as caught:
        load(attached)
    assert caught.value.where.startswith("num_layers, num_attention_heads")
