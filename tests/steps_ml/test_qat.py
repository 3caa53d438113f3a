"""Training behind rounded weights: what it computes is what `quantise` makes of its result."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kolm_build.core.fields import Fields
from kolm_build.core.numerics import Numerics
from kolm_build.core.quantisation import SCHEMES
from kolm_build.core.request import Circumstances
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.kernels import LIBRARY
from tests.steps_ml.calling import files_of, prompt_row, run_step, write_lines, write_rows
from tests.steps_ml.test_quantise import decoded, in_bfloat16
from tests.support.models import tiny_llama, tiny_rows

pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

IDS = torch.tensor([[5, 80, 12, 33, 7, 9, 41]])
WHOLE = ("model", "metrics", "trace")
LAYERS = 14
"""Linear layers of the tiny model, its head left out."""


def change_of(name="qat", **params):
    from kolm_build.steps.adapters.table import ADAPTERS

    fields = Fields(params)
    change = ADAPTERS[name](fields)
    fields.done()
    return change


def attached(change, model):
    """The network of `model` with `change`."""
    change.look(model)
    return change.attach(network_of(model))


def network_of(model):
    from kolm_build.runtime.loading import load

    return load(model, dtype=torch.float32).network


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("qat") / "model")


def moved(network, *only):
    """`network`, its parameters (those with a part of `only` in their names) off by noise."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, one in network.named_parameters():
            if not only or any(part in name for part in only):
                one.add_(torch.randn(one.shape, generator=generator) * 0.05)
    return network


def portable():
    """The portable kernels, in which `merge` adds too."""
    from kolm_build.numerics.apply import applied

    circumstances = Circumstances(kernels=str(LIBRARY), threads=1)
    return applied(Numerics(cls="portable-1", seed=3), circumstances)


@pytest.mark.parametrize(
    ("scheme", "params"),
    [
        ("fp8", {}),
        ("mxfp4", {}),
        ("nvfp4a16", {}),
        ("nvfp4a16", {"weights_dtype": "bf16"}),
        ("w4a16", {"weights_dtype": "bf16"}),
        ("w4a16", {"rounding_group": 32}),
        ("w4a16-asym", {"weights_dtype": "fp16"}),
        ("w8a16", {"weights_dtype": "fp32"}),
    ],
)
def test_what_is_multiplied_with_is_what_quantise_stores(scheme, params, model, tmp_path):
    """DIST-63: bit for bit, the scales in the dtype of the result."""
    from kolm_build.steps.adapters._rounded import roundings

    change = change_of(rounding=scheme, **params)
    network = moved(attached(change, model))
    rounded = roundings(network)
    assert len(rounded) == LAYERS
    (tmp_path / "trained").mkdir()
    change.write(network, base=model, out=tmp_path / "trained")
    asked = {"scheme": scheme, "group": params.get("rounding_group", 0)}
    ran = run_step("quantise", tmp_path, inputs={"model": tmp_path / "trained"}, params=asked)
    stored = decoded(ran.folder())
    for path, layer in rounded.items():
        assert torch.equal(layer.values(), stored[f"{path}.weight"]), path


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("scheme", ["nvfp4a16", "w4a16"])
def test_behind_an_adapter_it_is_what_quantise_stores_of_the_merged_weight(
    scheme, dtype, model, tmp_path
):
    """DIST-67: through the files of the adapter, `merge` and `quantise`, bit for bit."""
    from kolm_build.steps.adapters._rounded import roundings

    base = model if dtype == "fp32" else in_bfloat16(tiny_llama(tmp_path / "base"))
    change = change_of("qat-lora", lora_r=4, lora_alpha=6, rounding=scheme)
    network = moved(attached(change, base), "lora_")
    with portable():
        rounded = {
            path.removeprefix("base_model.model."): one.values()
            for path, one in roundings(network).items()
        }
    assert len(rounded) == LAYERS
    (tmp_path / "adapter").mkdir()
    change.write(network, base=base, out=tmp_path / "adapter")
    inputs = {"model": base, "adapter": tmp_path / "adapter"}
    merged = run_step("merge", tmp_path, inputs=inputs, portable=(1, None)).folder()
    params = {"scheme": scheme}
    ran = run_step("quantise", tmp_path, inputs={"model": merged}, params=params)
    stored = decoded(ran.folder())
    plain = load_file(merged / "model.safetensors")
    for path, one in rounded.items():
        assert torch.equal(one, stored[f"{path}.weight"]), path
        assert not torch.equal(one, plain[f"{path}.weight"].float()), path


def test_without_rounding_the_gradients_are_those_of_lora(model, monkeypatch):
    """DIST-67: of A and B, where the rounded sum is the sum."""
    from kolm_build.steps.adapters import _rounded

    monkeypatch.setattr(_rounded.Rounding, "round", lambda one: one._weight().detach())
    gradients = []
    for name in ("qat-lora", "lora"):
        change = change_of(name, lora_r=4, lora_alpha=6)
        torch.manual_seed(2)
        network = moved(attached(change, model), "lora_")
        network(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append(
            {path: one.grad for path, one in network.named_parameters() if one.requires_grad}
        )
    ours, theirs = gradients
    assert ours.keys() == theirs.keys()
    for path, one in ours.items():
        torch.testing.assert_close(one, theirs[path], rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_the_rounded_weight_and_reaches_the_kept_one(model):
    """DIST-64: straight through, by hand."""
    from kolm_build.numerics.quantised import nearest, scales, values
    from kolm_build.steps.adapters._rounded import RoundedLinear

    generator = torch.Generator().manual_seed(5)
    weight, inputs, back = (
        torch.randn(shape, generator=generator) for shape in ((6, 32), (3, 32), (3, 6))
    )
    plain = torch.nn.Linear(32, 6)
    plain.weight.data = weight.clone()
    grid = SCHEMES["w4a16"].grid(32)
    layer = RoundedLinear(plain, grid, torch.float32)
    inputs.requires_grad_()
    found = layer(inputs)
    found.backward(back)
    rounded = values(nearest(weight, scales(weight, grid)))
    assert not torch.equal(rounded, weight)
    torch.testing.assert_close(found, inputs @ rounded.T + plain.bias)
    torch.testing.assert_close(layer.weight.grad, back.T @ inputs)
    torch.testing.assert_close(inputs.grad, back @ rounded)
    torch.testing.assert_close(layer.bias.grad, back.sum(dim=0))
    assert torch.equal(layer.weight, weight), "what is kept is not rounded"


def test_gradients_of_what_is_not_rounded_are_those_of_finite_differences():
    """DIST-64: of what a rounded layer reads, and of its bias."""
    from kolm_build.steps.adapters._rounded import RoundedLinear

    layer = RoundedLinear(torch.nn.Linear(32, 3).double(), SCHEMES["w4a16"].grid(32), torch.float32)
    layer.weight.requires_grad_(requires_grad=False)
    inputs = torch.randn((2, 32), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda one, _bias: layer(one), [inputs, layer.bias])


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    root = tmp_path_factory.mktemp("rows")
    rows = [json.loads(line) for line in tiny_rows(root / "rows").read_text().splitlines()]
    pairs = [(one["text"], one["ward"]) for one in rows]
    return write_rows(root / "train", "train.jsonl", pairs[:40]), pairs[40:56]


def trained(root, model, rows, *, algorithm="sft", adapter="qat", **params):
    inputs = {"model": model, "train": rows}
    if algorithm == "kd":
        inputs["teacher"] = model
    params = {"compute_dtype": "fp32", "adapter": adapter, **params}
    return run_step(
        algorithm, root, inputs=inputs, params=params, outputs=WHOLE, portable=(1, None)
    )


def on_the_grid(folder):
    """The model of `folder`, its matrices of values and scales that FP8 has."""
    tensors = load_file(folder / "model.safetensors")
    for name, one in tensors.items():
        if "proj" in name:
            signs = torch.where(one < 0, -1.0, 1.0) * 2.0**-6
            signs[:, 0] = 448.0 * 2.0**-12
            tensors[name] = signs
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_where_rounding_changes_nothing_a_step_is_that_of_full(tmp_path, train):
    """DIST-65: bit for bit, loss and weights."""
    base = on_the_grid(tiny_llama(tmp_path / "grid"))
    made = [
        trained(tmp_path, base, train[0], adapter=name, max_steps=1, learning_rate="0.01", **more)
        for name, more in (("qat", {"rounding": "fp8", "weights_dtype": "fp32"}), ("full", {}))
    ]
    for output in ("model", "metrics"):
        first, second = (files_of(one.folder(output)) for one in made)
        assert first == second, output
    assert files_of(made[0].folder("model")) != files_of(base)


def test_a_matrix_is_rounded_once_in_a_step_and_never_later_than_it_moved(
    tmp_path, model, train, monkeypatch
):
    """DIST-66: not for every row; and what a step sees is its own weights, rounded."""
    from kolm_build.steps.adapters import _rounded

    seen = []
    plain = _rounded.Rounding.round

    def counted(rounding):
        seen.append(rounding.stored().sum().item())
        return plain(rounding)

    monkeypatch.setattr(_rounded.Rounding, "round", counted)
    trained(tmp_path, model, train[0], max_steps=3, batch_size=4, learning_rate="0.01").folder(
        "model"
    )
    assert len(seen) == 3 * LAYERS
    assert len(set(seen)) == 3 * LAYERS


def test_the_reference_is_the_rounded_network_as_it_was(model):
    """DIST-66, ADPT-6: and what was rounded of it does not stay."""
    change = change_of()
    network = attached(change, model).eval()
    change.remember(network)

    def logits():
        with torch.no_grad():
            return network(input_ids=IDS).logits

    before = logits()
    moved(network)
    with change.reference(network):
        assert torch.equal(logits(), before)
    after = logits()
    assert not torch.equal(after, before)
    change.watchers(network)[0].forget()
    assert torch.equal(logits(), after)


def distance(model, teacher, pairs):
    """KL(teacher || model) a token over held-out answers."""
    from kolm_build.runtime.loading import load
    from kolm_build.steps._sequences import Tokeniser, answer_logits

    ours, theirs = (load(one, dtype=torch.float32) for one in (model, teacher))
    tokens, total, count = Tokeniser(model=theirs, max_length=512), 0.0, 0
    for prompt, answer in pairs:
        row = tokens.sequence([{"role": "user", "content": prompt}], answer, "row")
        with torch.no_grad():
            found, wanted = (
                answer_logits(one.network, row)[0].log_softmax(dim=-1) for one in (ours, theirs)
            )
        total += (wanted.exp() * (wanted - found)).sum().item()
        count += row.tokens
    return total / count


def test_distilled_behind_rounded_weights_a_model_rounds_closer_to_its_teacher(
    tmp_path, model, train
):
    """On rows that it never saw: than the teacher itself rounded, or one distilled plainly."""
    rows, held_out = train
    teacher = trained(
        tmp_path, model, rows, adapter="full", epochs=8, learning_rate="0.003"
    ).folder("model")
    params = {"algorithm": "kd", "epochs": 4, "hard_weight": "0", "learning_rate": "0.0002"}
    aware = trained(tmp_path, teacher, rows, **params).folder("model")
    plain = trained(tmp_path, teacher, rows, adapter="full", **params).folder("model")

    def rounded(folder):
        params = {"scheme": "w4a16"}
        ran = run_step("quantise", tmp_path, inputs={"model": folder}, params=params)
        return distance(ran.folder(), teacher, held_out)

    found = rounded(aware)
    assert found < rounded(teacher) / 2
    assert found < rounded(plain) / 2


@pytest.mark.parametrize("name", ["qat", "qat-lora"])
def test_a_student_is_taught_on_what_its_rounded_self_says(name, tmp_path, model):
    """DIST-66: what was rounded to draw from is trained through, in parts of any size."""
    prompts = [prompt_row(at, text) for at, text in enumerate(("a", "so?", "what", "b"), 1)]
    rows = write_lines(tmp_path / "prompts", "train.jsonl", prompts)
    made = [
        run_step(
            "minillm",
            tmp_path,
            inputs={"model": model, "teacher": model, "train": rows},
            params={
                "adapter": name,
                "batch_size": size,
                "gradient_accumulation": 4 // size,
                "compute_dtype": "fp32",
                "max_new_tokens": 4,
                "max_steps": 2,
                "epochs": 2,
            },
            outputs=("model" if name == "qat" else "adapter", "metrics", "trace"),
            portable=(1, None),
        )
        for size in (4, 2)
    ]
    first, second = (files_of(one.folder("metrics")) for one in made)
    assert first == second
    _, line, _ = first["metrics.csv"].decode().splitlines()
    assert float(line.split(",")[1]) > 1e-5, "the teacher is not rounded, the student is"


@pytest.mark.parametrize(
    ("params", "where", "reason"),
    [
        ({"rounding": "w8a8"}, "rounding", "unknown value"),
        ({"rounding": "int4"}, "rounding", "unknown value"),
        ({"rounding_group": 48}, "rounding_group", "not a size of a group"),
        ({"rounding": "fp8", "rounding_group": 32}, "rounding_group", "not a size of a group"),
        ({"rounding_group": 128}, "model.layers.0.self_attn.q_proj", "does not divide"),
        ({"weights_dtype": "int8"}, "weights_dtype", "unknown value"),
        ({"target_modules": "nothing"}, "target_modules", "no such linear layer"),
    ],
)
def test_what_cannot_be_rounded_so_is_refused(params, where, reason, model):
    """DIST-63: by its name, before anything is trained."""
    with pytest.raises(InvalidRecordError, match=reason) as caught:
        attached(change_of(**params), model)
    assert caught.value.where == where


@pytest.mark.parametrize("name", ["qat", "qat-lora"])
def test_it_trains_in_the_native_class_too_and_in_no_fewer_bits(name, tmp_path, model, train):
    """DIST-64, DIST-67: where TRL runs batches."""
    inputs = {"model": model, "train": train[0]}
    output = "model" if name == "qat" else "adapter"
    params = {"adapter": name, "max_steps": 2}
    how = {"inputs": inputs, "outputs": (output, "metrics", "trace")}
    run_step("sft", tmp_path, params={**params, "compute_dtype": "fp32"}, **how).folder(output)
    refusal = run_step("sft", tmp_path, params={**params, "compute_dtype": "bf16"}, **how).refusal()
    assert refusal["where"].endswith("compute_dtype")


def test_only_the_layers_that_are_named_are_rounded(model):
    """DIST-63."""
    from kolm_build.steps.adapters._rounded import roundings

    network = attached(change_of(target_modules="down_proj,q_proj"), model)
    names = {path.rpartition(".")[2] for path in roundings(network)}
    assert names == {"down_proj", "q_proj"}
    assert sorted(network.state_dict()) == sorted(network_of(model).state_dict())


def test_the_recipe_offers_the_schemes_that_the_step_knows():
    """ALG-2: those of weights alone."""
    from kolm_build.core.catalogue.adapters import ROUNDING
    from kolm_build.steps.adapters._rounded import WEIGHT_ONLY

    assert ROUNDING[0].options == WEIGHT_ONLY
    assert set(WEIGHT_ONLY) == {name for name, one in SCHEMES.items() if not one.activations}
