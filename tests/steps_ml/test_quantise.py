"""``quantise``: the folder that it writes, what transformers makes of it, what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kolm_build.core.quantisation import SCHEMES
from kolm_build.core.quantisation_config import from_config
from kolm_build.core.safetensors import is_canonical, parse_header
from kolm_build.numerics.quantised import unpack, values
from tests.steps_ml.calling import files_of, run_step, write_rows
from tests.support.models import tiny_llama

FP4 = ("mxfp4", "nvfp4", "nvfp4a16")
STATIC = [name for name, scheme in SCHEMES.items() if scheme.activations == "static"]
RTN = [name for name in SCHEMES if name not in STATIC]
LOADED = [name for name in RTN if name != "w4a16-asym"]
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
DOWN = "model.layers.0.mlp.down_proj"

pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def model(tmp_path):
    return tiny_llama(tmp_path / "model")


def stored(folder):
    return load_file(folder / "model.safetensors")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def rewritten(folder, change, **config):
    """`folder` with `change` applied to its tensors and keys of its configuration replaced."""
    tensors = stored(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(folder) | config))
    return folder


def in_bfloat16(folder):
    def narrow(tensors):
        tensors |= {name: one.bfloat16() for name, one in tensors.items()}

    return rewritten(folder, narrow, dtype="bfloat16")


def untied(folder):
    def add(tensors):
        tensors[f"{HEAD}.weight"] = tensors[f"{EMBEDDING}.weight"].clone() / 2

    return rewritten(folder, add, tie_word_embeddings=False)


def quantised(tmp_path, model, scheme, **params):
    ran = run_step(
        "quantise", tmp_path, inputs={"model": model}, params={"scheme": scheme} | params
    )
    ran.folder()
    return ran


def decoded(folder):
    """Every weight of a quantised folder as its float32 values, by the name it had."""
    tensors, config = stored(folder), config_of(folder)
    found = {name: one for name, one in tensors.items() if name.endswith("norm.weight")}
    for name, group in from_config(config["quantization_config"]).by_layer().items():
        parts = {
            key.removeprefix(f"{name}."): one
            for key, one in tensors.items()
            if key.startswith(f"{name}.")
        }
        if name == HEAD and "weight" not in parts and "weight_packed" not in parts:
            assert torch.equal(parts["weight_scale"], tensors[f"{EMBEDDING}.weight_scale"])
            continue
        packed = parts.get("weight_shape")
        shape = tuple(packed.tolist()) if packed is not None else None
        if shape is None:
            codes = parts.get("weight", parts.get("weight_packed"))
            shape = (len(codes), codes.shape[1] * (1 if "weight" in parts else 2))
        found[f"{name}.weight"] = values(unpack(parts, group.grid, group.form, shape))
    for name, one in tensors.items():
        if name.endswith(".weight") and one.is_floating_point() and one.element_size() > 1:
            found.setdefault(name, one)
    return found


def transformers_of(folder, dtype, *, dequantize=False):
    """The network that transformers makes of `folder` as it is, its weights as it runs them."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    network, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, **how
    )
    assert not any(told.values()), told
    with torch.no_grad():
        logits = network(torch.tensor([[5, 9, 200, 31]])).logits
    assert torch.isfinite(logits).all()
    return network.state_dict()


# -------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize(
    ("scheme", "embeddings"), [("w4a16", "keep"), *((name, "int8") for name in LOADED)]
)
def test_transformers_loads_the_folder_as_it_is(tmp_path, model, scheme, embeddings):
    """QUANT-6, QUANT-33, QUANT-41: its weights are ours; in bfloat16 ours rounded once."""
    folder = quantised(tmp_path, in_bfloat16(model), scheme, embeddings=embeddings).folder()
    ours = decoded(folder)
    for dtype in (torch.bfloat16,) if scheme in FP4 else (torch.bfloat16, torch.float32):
        theirs = transformers_of(folder, dtype)
        for name, one in ours.items():
            assert torch.equal(theirs[name], one.to(dtype)), name
        tied = theirs[f"{EMBEDDING}.weight"]
        assert torch.equal(theirs[f"{HEAD}.weight"], tied)


def test_zero_points_load_with_one_group_size(tmp_path, model):
    """QUANT-20, QUANT-21: the one way that there is, as the page says; the plain way is refused."""
    folder = quantised(tmp_path, model, "w4a16-asym", group=32).folder()
    theirs = transformers_of(folder, torch.float32, dequantize=True)
    for name, one in decoded(folder).items():
        assert torch.equal(theirs[name], one), name
    with pytest.raises(RuntimeError, match="mismatched"):
        transformers_of(folder, torch.float32)


def test_a_head_of_four_bits_loads_where_it_is_not_tied(tmp_path, model):
    """QUANT-34: the embedding has eight."""
    folder = quantised(tmp_path, untied(model), "w4a16", embeddings="int4").folder()
    groups = from_config(config_of(folder)["quantization_config"]).by_layer()
    assert (groups[HEAD].grid.bits, groups[HEAD].grid.group) == (4, 64)
    assert (groups[EMBEDDING].grid.bits, groups[EMBEDDING].form) == (8, "int-quantized")
    theirs = transformers_of(folder, torch.float32)
    for name, one in decoded(folder).items():
        assert torch.equal(theirs[name], one), name


def test_a_tied_head_of_four_bits_is_refused(tmp_path, model):
    """QUANT-34."""
    params = {"scheme": "w4a16", "embeddings": "int4"}
    error = run_step("quantise", tmp_path, inputs={"model": model}, params=params).refusal()
    assert error["where"].startswith("lm_head.weight")
    assert "int8" in error["expected"]


def test_all_that_is_not_rounded_stays(tmp_path, model):
    """QUANT-30, QUANT-40, QUANT-43: other files, other tensors, other keys; a canonical file."""
    keep = "*.down_proj\nmodel.layers.1.*"
    folder = quantised(tmp_path, model, "w4a16", keep=keep).folder()
    before, after = files_of(model), files_of(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert (before.keys(), changed) == (after.keys(), {"config.json", "model.safetensors"})
    config = config_of(folder)
    groups = config.pop("quantization_config")
    assert config == config_of(model)
    rounded = set(from_config(groups).by_layer())
    assert rounded == {
        f"model.layers.0.{name}"
        for name in (*ATTENTION, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
    }
    old, new = stored(model), stored(folder)
    for name, tensor in old.items():
        if name.removesuffix(".weight") not in rounded:
            assert torch.equal(new[name], tensor), name
    assert DOWN in groups["ignore"]
    assert EMBEDDING in groups["ignore"]
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    assert is_canonical(header, parse_header(header, len(data)))


def test_the_group_follows_each_layer(tmp_path, model):
    """QUANT-2: 128 columns and 64, in the configuration and in the report."""
    ran = quantised(tmp_path, model, "w4a16")
    groups = from_config(config_of(ran.folder())["quantization_config"]).by_layer()
    sizes = {name: group.grid.group for name, group in groups.items()}
    assert sizes[DOWN] == 128
    assert {sizes[name] for name in sizes if "down" not in name} == {64}
    report = json.loads((ran.folder("report") / "quantisation.json").read_text())
    assert {row["layer"]: row["grid"]["group"] for row in report["layers"]} == sizes


def test_layers_that_are_run_as_one_share_a_scale(tmp_path, model):
    """QUANT-7: the smallest, so that of the largest weight; the other layers have their own."""
    tensors, plain = stored(quantised(tmp_path, model, "nvfp4a16").folder()), stored(model)

    def scale(name):
        return float(tensors[f"model.layers.0.{name}.weight_global_scale"])

    def largest(*names):
        return max(float(plain[f"model.layers.0.{name}.weight"].abs().max()) for name in names)

    for family in (
        ATTENTION,
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
        ["self_attn.o_proj"],
    ):
        assert len({scale(name) for name in family}) == 1
        assert scale(family[0]) == pytest.approx(2688 / largest(*family), rel=1e-6)


@pytest.mark.parametrize("scheme", STATIC)
def test_static_scales_of_activations_come_from_calibration(tmp_path, model, scheme):
    """QUANT-26."""
    rows = write_rows(tmp_path / "rows", "train.jsonl", [("hello there " * 9, "bone")] * 4)
    params = {"scheme": scheme, "calibration_rows": 4, "calibration_length": 64}
    ran = run_step(
        "quantise", tmp_path, inputs={"model": model, "calibration": rows}, params=params
    )
    folder = ran.folder()
    suffix = "input_global_scale" if scheme == "nvfp4" else "input_scale"
    found = {name: one for name, one in stored(folder).items() if name.endswith(suffix)}
    assert len(found) == 14
    assert all(one.shape == (1,) and one.dtype == torch.float32 for one in found.values())
    assert all(0 < float(one) < float("inf") for one in found.values())
    transformers_of(folder, torch.float32 if scheme != "nvfp4" else torch.bfloat16)


# -------------------------------------------------------------------------------------- the report


def test_the_report_says_what_rounding_cost(tmp_path, model):
    """QUANT-60, QUANT-61, QUANT-62: counted again here, in binary64."""
    plain = stored(rewritten(model, lambda tensors: tensors[f"{DOWN}.weight"][7, :4].fill_(3.0)))
    ran = quantised(tmp_path, model, "w4a16", embeddings="int8")
    report = json.loads((ran.folder("report") / "quantisation.json").read_text())
    found, tensors = decoded(ran.folder()), stored(ran.folder())
    size = sum(one.numel() * one.element_size() for one in tensors.values())
    parameters = sum(one.numel() for one in plain.values())
    assert (report["tensor_bytes"], report["parameters"]) == (size, parameters)
    assert report["bits_per_weight"] == f"{8 * size / parameters:.6f}"
    assert (report["version"], report["scheme"], report["method"]) == (1, "w4a16", "rtn")
    assert (report["embeddings"], report["group"], report["kept"]) == ("int8", 0, [])
    rows = {row["layer"]: row for row in report["layers"]}
    assert list(rows) == sorted(rows)
    assert set(rows) == {name.removesuffix(".weight") for name in found if "norm" not in name}
    for name, row in rows.items():
        exact = plain[f"{name}.weight"].double()
        off = found[f"{name}.weight"].double() - exact
        mean = exact.square().mean().sqrt()
        assert float(row["relative_error"]) == pytest.approx(float(off.norm() / exact.norm()), 1e-4)
        assert row["outliers"] == int((exact.abs() >= 8 * mean).sum())
        assert float(row["peak"]) == pytest.approx(float(exact.abs().max() / mean), rel=1e-4)
        assert (row["elements"], row["shape"]) == (exact.numel(), list(exact.shape))
    errors = {name: float(row["relative_error"]) for name, row in rows.items()}
    worst = [errors[name] for name in report["worst"]]
    assert worst == sorted(errors.values(), reverse=True)[:10]
    assert rows[DOWN]["outliers"] > 0


@pytest.mark.parametrize("scheme", ["nvfp4a16", "w4a16-asym", "fp8"])
def test_bytes_do_not_depend_on_process_threads_or_instruction_set(tmp_path, model, scheme):
    """QUANT-50: both outputs."""
    from kolm_build.numerics import portable
    from kolm_build.numerics.kernels import LIBRARY

    portable.load(LIBRARY)
    least = portable.isas()[-1]
    params = {"scheme": scheme, "embeddings": "int8"}
    runs = [
        run_step("quantise", tmp_path, inputs={"model": model}, params=params, **how)
        for how in (
            {"portable": (1, None)},
            {"portable": (2, least), "env": {"PYTHONHASHSEED": "7"}},
        )
    ]
    one, other = ({**files_of(ran.folder()), **files_of(ran.folder("report"))} for ran in runs)
    assert one == other


# ---------------------------------------------------------------------------------------- refusals


def test_every_method_that_a_recipe_may_name_is_built():
    """QUANT-41."""
    from kolm_build.core.quantise_choices import METHODS
    from kolm_build.steps.quantisation import methods

    assert set(methods.METHODS) == set(METHODS)


def refused(tmp_path, model, **params):
    ran = run_step("quantise", tmp_path, inputs={"model": model}, params=params)
    error = ran.refusal()
    assert not any(files_of(folder) for folder in ran.outputs.values())
    return error


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_by_name(tmp_path, model, bad):
    """QUANT-42."""
    rewritten(model, lambda tensors: tensors[f"{DOWN}.weight"][3].fill_(bad))
    error = refused(tmp_path, model, scheme="w8a16")
    assert (error["file"], error["where"]) == ("model.safetensors", f"{DOWN}.weight")


def test_a_layer_that_no_group_divides_is_refused_by_name(tmp_path):
    """QUANT-2, QUANT-42."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "odd"
    sizes = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 1}
    network = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, vocab_size=99))
    network.save_pretrained(folder)
    error = refused(tmp_path, folder, scheme="w4a16")
    assert error["where"] == f"{DOWN}.weight"
    assert error["actual"] == "80 columns"
    assert "keep" in error["advice"]
    folder = quantised(tmp_path, folder, "w4a16", keep="*.down_proj").folder()
    assert DOWN in config_of(folder)["quantization_config"]["ignore"]


def test_a_quantised_model_is_not_quantised_again(tmp_path, model):
    """QUANT-42."""
    once = quantised(tmp_path, model, "w8a16").folder()
    error = refused(tmp_path, once, scheme="w4a16")
    assert error["where"] == "quantization_config"


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({}, "scheme"),
        ({"scheme": "w2a16"}, "scheme"),
        ({"scheme": "w4a16", "method": "hqq"}, "method"),
        ({"scheme": "w4a16", "group": 16}, "group"),
        ({"scheme": "w4a16", "group": 128}, "model.layers.0.mlp.gate_proj.weight"),
        ({"scheme": "w8a16", "group": 64}, "group"),
        ({"scheme": "w4a16", "embeddings": "int2"}, "embeddings"),
        ({"scheme": "w4a16", "keep": "*.conv"}, "keep"),
        ({"scheme": "w4a16", "keep": "*"}, "keep"),
        ({"scheme": "w4a16", "keep": "*_proj\n"}, "keep"),
        ({"scheme": "w4a16", "damping": "0.1"}, "damping"),
        ({"scheme": "w4a16", "calibration_rows": 4}, "calibration_rows"),
        ({"scheme": "w8a8-static"}, "inputs.calibration"),
        ({"scheme": "w4a16", "method": "gptq", "damping": "2"}, "damping"),
        ({"scheme": "w4a16", "method": "gptq", "act_order": "group"}, "act_order"),
    ],
)
def test_what_a_recipe_may_not_say_is_refused(tmp_path, model, params, where):
    """QUANT-1, QUANT-40, QUANT-42."""
    assert refused(tmp_path, model, **params)["where"].startswith(where)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "nothing-known"},
        {"hidden_size": 32, "head_dim": 8},
        {"architectures": ["BertModel"]},
    ],
)
def test_a_model_that_does_not_fit_is_refused(tmp_path, model, config):
    """QUANT-42."""
    refused(tmp_path, rewritten(model, lambda _tensors: None, **config), scheme="w4a16")


def test_a_model_without_linear_layers_is_refused(tmp_path):
    """QUANT-42: GPT-2's matrices are of another class, and lie the other way round."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=99)).save_pretrained(
        folder
    )
    assert "no linear layer" in refused(tmp_path, folder, scheme="w8a16")["reason"]
