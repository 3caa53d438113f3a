"""Every adapter: equal bytes twice, a merge that computes the same, and its limiting cases."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.steps import table
from kolm_build.steps._adapter import Adapter
from kolm_build.steps._weights import read_weights, write_weights
from kolm_build.steps.merge import merge
from tests.steps_ml import calling
from tests.steps_ml.calling import files_of, run_step, write_rows
from tests.support.models import tiny_llama

pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

LOW_RANK = {"lora_r": 4, "lora_alpha": 6}
PARAMS = {
    "adalora": {"adalora_init_r": 4, "adalora_target_r": 2, "lora_alpha": 6},
    "boft": {"boft_block_size": 8, "boft_factors": 3},
    "dora": LOW_RANK,
    "hra": {"hra_r": 4},
    "ia3": {},
    "loha": LOW_RANK,
    "lokr": LOW_RANK,
    "lora": LOW_RANK,
    "lora-fa": LOW_RANK,
    "oft": {"oft_block_size": 8},
    "olora": LOW_RANK,
    "pissa": LOW_RANK,
    "qat-lora": LOW_RANK,
    "qlora": LOW_RANK,
    "rslora": LOW_RANK,
    "vera": {"vera_r": 8},
}
"""Those that can be merged."""
VIRTUAL = {"prefix-tuning": {"virtual_tokens": 3}, "prompt-tuning": {"virtual_tokens": 3}}
PARTIAL = {"freeze": {}, "full": {}, "ln-tuning": {}, "qat": {}}
READ_BY_PEFT = sorted(set(PARAMS) - {"boft", "qlora"})
ROUNDED = {"qat", "qat-lora"}
"""Those whose layers compute with rounded weights."""
ROWS = [("a pain", "bone"), ("it is a cough", "lung"), ("sad", "mind"), ("a rash!", "skin")]
IDS = torch.tensor([[5, 80, 12, 33, 7, 9, 41]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("adapters") / "model")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "train", "train.jsonl", ROWS)


@pytest.fixture
def outputs(monkeypatch):
    """The step `sft` with the output that an adapter gives."""

    def give(output):
        names = tuple(sorted((output, "metrics", "trace")))
        spec = dataclasses.replace(table.STEPS["sft"], outputs=names)
        monkeypatch.setattr(calling, "STEPS", {**table.STEPS, "sft": spec})

    return give


def change_of(name, **params):
    from kolm_build.steps.adapters.table import ADAPTERS

    known = {**PARAMS, **VIRTUAL, **PARTIAL}
    fields = Fields({**known.get(name, {}), **params})
    change = ADAPTERS[name](fields)
    fields.done()
    return change


def network_of(model):
    from kolm_build.runtime.loading import load

    return load(model, dtype=torch.float32).network


def attached(name, model, **params):
    """A change, and a network that it is attached to, off its start by small noise."""
    torch.manual_seed(3)
    change = change_of(name, **params)
    change.look(model)
    network = change.attach(network_of(model))
    change.remember(network)
    with torch.no_grad():
        for one in network.parameters():
            if one.requires_grad:
                one.add_(torch.randn(one.shape) * 0.05)
    return change, network.eval()


@torch.no_grad()
def logits_of(network):
    return network(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def merged(model, adapter, folder):
    """The model with the adapter in the folder `adapter` merged in, as `merge` does."""
    made = merge(read_weights(model / "model.safetensors"), Adapter.read(adapter))
    folder.mkdir()
    for name, data in files_of(model).items():
        if name != "model.safetensors":
            (folder / name).write_bytes(data)
    write_weights(folder / "model.safetensors", made)
    return folder


@pytest.mark.parametrize("name", sorted({**PARAMS, **VIRTUAL, **PARTIAL}))
def test_training_twice_under_the_guard_gives_equal_bytes(name, tmp_path, model, train, outputs):
    """ADPT-5: portable-1, and torch's generator stands elsewhere before each run."""
    known = {**PARAMS, **VIRTUAL, **PARTIAL}
    output = "model" if name in PARTIAL else "adapter"
    dtype = "fp32" if name in {*PARTIAL, *ROUNDED} else "bf16"
    outputs(output)
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        ran = run_step(
            "sft",
            tmp_path,
            inputs={"model": model, "train": train},
            params={
                "adapter": name,
                "compute_dtype": dtype,
                "batch_size": 2,
                "learning_rate": "0.01",
            }
            | known[name],
            portable=(state, None),
        )
        made.append(files_of(ran.folder(output)))
    assert made[0] == made[1]
    if output == "adapter":
        assert set(made[0]) == {"adapter_config.json", "adapter_model.safetensors", "base.json"}


@pytest.mark.parametrize("name", sorted(set(PARAMS) - ROUNDED))
def test_a_merged_model_computes_what_the_adapted_one_did(name, tmp_path, model):
    """ADPT-3, ADPT-11, ADPT-24, ADPT-42: from the files alone."""
    change, network = attached(name, model)
    (tmp_path / "adapter").mkdir()
    change.write(network, base=model, out=tmp_path / "adapter")
    whole = network_of(merged(model, tmp_path / "adapter", tmp_path / "merged"))
    wanted = logits_of(network)
    torch.testing.assert_close(logits_of(whole), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - logits_of(network_of(model))).abs().max() > 1e-2


@pytest.mark.parametrize("name", READ_BY_PEFT)
def test_a_merge_is_what_peft_makes_of_the_files(name, tmp_path, model):
    """ADPT-3: PEFT reads the adapter and merges it; float32."""
    from peft import PeftModel

    change, network = attached(name, model)
    (tmp_path / "adapter").mkdir()
    change.write(network, base=model, out=tmp_path / "adapter")
    found = load_file(
        merged(model, tmp_path / "adapter", tmp_path / "merged") / "model.safetensors"
    )
    peft = PeftModel.from_pretrained(network_of(model), tmp_path / "adapter")
    wanted = peft.merge_and_unload().state_dict()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", sorted({**PARAMS, **VIRTUAL, **PARTIAL} | {"full": {}}))
def test_the_reference_is_the_network_as_it_was(name, model):
    """ADPT-6: the rounded base of what rounds it; the others' the base itself."""
    change, network = attached(name, model)
    moved = logits_of(network)
    with change.reference(network):
        found = logits_of(network)
    assert torch.equal(logits_of(network), moved)
    base = network_of(model)
    if name == "qlora":
        round_linear_layers(base)
    if name in ROUNDED:
        other = change_of(name)
        other.look(model)
        base = other.attach(base)
    torch.testing.assert_close(found, logits_of(base), rtol=1e-4, atol=2e-5)
    assert (moved - found).abs().max() > 1e-3


def round_linear_layers(network):
    from kolm_build.steps._nf4 import rounded

    for path, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            module.weight.data = rounded(module.weight.data)


@pytest.mark.parametrize(
    "name",
    ["adalora", "boft", "dora", "hra", "ia3", "loha", "lokr", "lora", "oft", "rslora", "vera"],
)
def test_an_adapter_begins_as_the_base(name, model):
    """Limiting case: B = 0, R = I, l = 1, m = ||W||."""
    network = change_of(name).attach(network_of(model)).eval()
    torch.testing.assert_close(
        logits_of(network), logits_of(network_of(model)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["olora", "pissa"])
def test_what_is_split_adds_up_to_the_weights(name, model):
    """ADPT-24: W_res + scale B A = W, and of full rank W_res is 0."""
    before = network_of(model).state_dict()
    for rank, full in ((4, False), (64, True)):
        alpha = rank if name == "olora" else 3  # of full rank R Q is W where the scale is 1
        network = change_of(name, lora_r=rank, lora_alpha=alpha).attach(network_of(model))
        for path, layer in network.named_modules():
            if not path.endswith("q_proj"):
                continue
            base = layer.base_layer.weight
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            whole = base + alpha / rank * up @ down
            wanted = before[path.removeprefix("base_model.model.") + ".weight"]
            torch.testing.assert_close(whole, wanted, rtol=0, atol=1e-6)
            assert (base.abs().max() < 1e-6) == full


def test_pissa_begins_with_pefts_own_principal_part(model):
    """ADPT-22: PEFT's, by LAPACK, is the oracle for B A."""
    from peft import LoraConfig, get_peft_model

    ours = change_of("pissa").attach(network_of(model))
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights="pissa")
    theirs = get_peft_model(network_of(model), config)
    for (path, one), (_, other) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        if path.endswith("down_proj"):
            change = one.get_delta_weight("default") - other.get_delta_weight("default")
            assert change.abs().max() < 1e-4 * other.get_delta_weight("default").abs().max()


def test_dora_learns_magnitude_and_direction_apart(model):
    """ADPT-3: the merged rows have the trained lengths (equation 5)."""
    _, network = attached("dora", model)
    layer = network.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    whole = layer.base_layer.weight + layer.get_delta_weight("default")
    length = layer.lora_magnitude_vector["default"].weight
    wanted = (length / whole.norm(dim=1))[:, None] * whole
    torch.testing.assert_close(wanted.norm(dim=1), length.abs(), rtol=1e-5, atol=1e-6)
    inputs = torch.randn(3, 64)
    torch.testing.assert_close(layer(inputs), inputs @ wanted.T, rtol=1e-4, atol=1e-5)


def test_a_frozen_a_stays_as_it_was_drawn(tmp_path, model, train):
    ran = run_step(
        "sft",
        tmp_path,
        inputs={"model": model, "train": train},
        params={"adapter": "lora-fa", "learning_rate": "0.01", **LOW_RANK},
    )
    other = run_step(
        "sft",
        tmp_path,
        inputs={"model": model, "train": train},
        params={"adapter": "lora-fa", "learning_rate": "0.02", **LOW_RANK},
    )
    one, two = (
        load_file(made.folder("adapter") / "adapter_model.safetensors") for made in (ran, other)
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]) == ("lora_A" in name)


def test_partial_training_moves_what_it_names(model):
    """ADPT-60."""
    moving = {
        "freeze": lambda name: ".layers.1." in name,
        "ln-tuning": lambda name: "norm" in name,
    }
    for name, wanted in moving.items():
        network = change_of(name).attach(network_of(model))
        for path, one in network.named_parameters():
            assert one.requires_grad == wanted(path), path


def test_vectors_that_lean_on_one_another_cost_something(model):
    """ADPT-41: PEFT's own penalty is the oracle; its gradient reaches P and Q."""
    change, network = attached("adalora", model)
    found = change.penalty(network)
    found.backward()
    terms = []
    for path, one in network.named_parameters():
        if "lora_A" in path or "lora_B" in path:
            matrix = one if "lora_A" in path else one.T
            terms.append(torch.linalg.matrix_norm(matrix @ matrix.T - torch.eye(4)))
            assert one.grad.abs().sum() > 0
    torch.testing.assert_close(found, 0.5 * sum(terms) / len(terms))


def test_a_budget_of_ranks_is_kept_in_training(tmp_path, model, train):
    """ADPT-40, ADPT-42: in the end 2 of 4 ranks of 14 layers are left, the others 0."""
    ran = run_step(
        "sft",
        tmp_path,
        inputs={"model": model, "train": train},
        params={"adapter": "adalora", "epochs": 4, "batch_size": 2, **PARAMS["adalora"]},
    )
    state = load_file(ran.folder("adapter") / "adapter_model.safetensors")
    left = [
        int((one.abs().sum(dim=1) > 0).sum()) for name, one in state.items() if "lora_A" in name
    ]
    assert len(left) == 14
    assert sum(left) == 28


def test_biases_are_asked_for(model):
    """ADPT-60: Llama has none, a network that has trains exactly those."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from kolm_build.errors import InvalidRecordError

    with pytest.raises(InvalidRecordError, match="no biases"):
        change_of("bitfit").attach(network_of(model))
    config = Qwen2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=32,
    )
    network = change_of("bitfit").attach(Qwen2ForCausalLM(config))
    moving = {
        path.rpartition(".")[2] for path, one in network.named_parameters() if one.requires_grad
    }
    assert moving == {"bias"}


def test_ia3_scales_the_bias_of_a_layer_as_peft_does(tmp_path):
    """ADPT-3: of a layer whose outputs are scaled, its bias too."""
    from peft import PeftModel
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=32,
        tie_word_embeddings=False,
    )
    network = Qwen2ForCausalLM(config)
    for name, one in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(one)
    state = {name: one.clone() for name, one in network.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    change = change_of("ia3")
    adapted = change.attach(network)
    for one in adapted.parameters():
        if one.requires_grad:
            torch.nn.init.normal_(one)
    (tmp_path / "adapter").mkdir()
    change.write(adapted, base=tmp_path, out=tmp_path / "adapter")
    write_weights(
        tmp_path / "merged.safetensors",
        merge(read_weights(tmp_path / "model.safetensors"), Adapter.read(tmp_path / "adapter")),
    )
    wanted = adapted.merge_and_unload().state_dict()
    assert PeftModel is not None
    for name, tensor in load_file(tmp_path / "merged.safetensors").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-7)


def test_boft_of_one_factor_is_pefts(model, monkeypatch):
    """ADPT-31: PEFT's module, its CUDA program left out, solves by LAPACK."""
    from peft import BOFTConfig, get_peft_model
    from peft.tuners.boft import layer as boft

    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: None)
    _, ours = attached("boft", model, boft_factors=1)
    config = BOFTConfig(boft_block_size=8, target_modules="all-linear")
    theirs = get_peft_model(network_of(model), config)
    for path, module in ours.named_modules():
        if hasattr(module, "boft_R"):
            other = theirs.get_submodule("base_model.model." + path)
            other.boft_R["default"].data = module.boft_R.data
            other.boft_s["default"].data = module.boft_s.data
    torch.testing.assert_close(logits_of(ours), logits_of(theirs.eval()), rtol=1e-4, atol=1e-4)


def test_virtual_tokens_see_positions_as_they_are(model):
    """ADPT-50: with all positions or with some of them, a row's logits are the same."""
    for name in VIRTUAL:
        _, network = attached(name, model)
        whole = logits_of(network)
        assert whole.shape[:2] == IDS.shape
        places = torch.tensor([2, 5])
        with torch.no_grad():
            some = network(
                input_ids=IDS, attention_mask=torch.ones_like(IDS), logits_to_keep=places
            ).logits
        torch.testing.assert_close(some, whole[:, places], rtol=1e-5, atol=1e-6)


def test_an_adapter_for_other_weights_is_refused(tmp_path, model):
    """ADPT-2: of the same shapes, and off by one bit."""
    from kolm_build.errors import InvalidRecordError

    change, network = attached("lora", model)
    (tmp_path / "adapter").mkdir()
    change.write(network, base=model, out=tmp_path / "adapter")
    other = {name: one.clone() for name, one in load_file(model / "model.safetensors").items()}
    next(iter(other.values())).view(torch.int32).reshape(-1)[0] ^= 1
    save_file(other, tmp_path / "model.safetensors")
    adapter = Adapter.read(tmp_path / "adapter")
    merge(read_weights(model / "model.safetensors"), adapter)
    with pytest.raises(InvalidRecordError, match="other weights") as caught:
        merge(read_weights(tmp_path / "model.safetensors"), adapter)
    assert (caught.value.file, caught.value.where) == ("base.json", "weights")
    assert caught.value.expected != caught.value.actual


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"stored": "int8"}, "stored"),
        ({"weights": "blake3:00"}, "weights"),
        ({"more": 1}, "more"),
    ],
)
def test_a_bad_base_file_is_refused(tmp_path, model, change, where):
    """ADPT-1."""
    from kolm_build.errors import InvalidRecordError

    made, network = attached("lora", model)
    made.write(network, base=model, out=tmp_path)
    path = tmp_path / "base.json"
    path.write_bytes(strict_json.dumps(strict_json.loads(path.read_bytes()) | change))
    with pytest.raises(InvalidRecordError) as caught:
        Adapter.read(tmp_path)
    assert (caught.value.file, caught.value.where) == ("base.json", where)


@pytest.mark.parametrize(
    ("name", "params", "where"),
    [
        ("oft", {"oft_block_size": 5}, "oft_block_size"),
        ("boft", {"boft_block_size": 5}, "boft_block_size"),
        ("boft", {"boft_factors": 9}, "model.layers.0.self_attn.q_proj"),
        ("ia3", {"feedforward_modules": "up_proj"}, "feedforward_modules"),
        ("adalora", {"adalora_target_r": 5}, "adalora_target_r"),
        ("freeze", {"trained_layers": 3}, "trained_layers"),
        ("hra", {"hra_r": 3}, "hra_r"),
        ("vera", {"target_modules": "none"}, "target_modules"),
        ("lora", {"lora_r": 0}, "lora_r"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused(model, name, params, where):
    """ADPT-4."""
    from kolm_build.errors import InvalidRecordError

    with pytest.raises(InvalidRecordError) as caught:
        change_of(name, **params).attach(network_of(model))
    assert caught.value.where == where


@cache
def steps_and_adapters():
    from kolm_build.core.catalogue.table import ADAPTERS as ROWS_OF
    from kolm_build.steps.adapters.table import ADAPTERS

    return ROWS_OF, ADAPTERS


def test_the_catalogue_and_the_steps_know_the_same_adapters():
    """ALG-2, ADPT-50: those of virtual tokens cannot be merged."""
    rows, steps = steps_and_adapters()
    assert set(rows) == set(steps)
    family = {name: row for name, row in rows.items() if row.family == "adapter"}
    assert {name for name, row in family.items() if not row.mergeable} == set(VIRTUAL)
    assert set(family) == {*PARAMS, *VIRTUAL, *PARTIAL, "bitfit"}


def test_the_catalogues_defaults_are_the_steps_own():
    """What a recipe spells out with its default is what a step does without it."""
    rows, steps = steps_and_adapters()
    for name, row in rows.items():
        given = {one.name: one.default for one in row.parameters}
        spelled, silent = Fields(given), Fields({})
        made, plain = steps[name](spelled), steps[name](silent)
        spelled.done()
        assert vars(made) == vars(plain), name
