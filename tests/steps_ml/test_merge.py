"""Merging is W + (alpha / r) B A, rounded once; PEFT is the oracle."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from kolm_build.core import strict_json
from kolm_build.steps._adapter import adapter_config
from tests.steps_ml.calling import files_of, run_step
from tests.support.models import ROOT, tiny_llama

RANK, ALPHA = 4, 6
LAYER = "model.layers.{}.{}"
MODULES = ("self_attn.q_proj", "mlp.down_proj")


def adapter_tensors(base) -> dict[str, torch.Tensor]:
    """Random adapters for two matrices of each layer."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for module in (LAYER.format(layer, name) for layer in (0, 1) for name in MODULES):
        rows, columns = base[f"{module}.weight"].shape
        for side, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
            name = f"base_model.model.{module}.lora_{side}.weight"
            tensors[name] = torch.randn(shape, generator=generator) / 8
    return tensors


def write_adapter(folder, tensors):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = adapter_config(rank=RANK, alpha=ALPHA, tensors=tensors)
    (folder / "adapter_config.json").write_bytes(strict_json.dumps(config))
    return folder


@pytest.fixture(params=["fp32", "bf16"])
def model(request, tmp_path):
    folder = tiny_llama(tmp_path / "model")
    if request.param == "bf16":
        path = folder / "model.safetensors"
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
        save_file(tensors, path)
    return folder


@pytest.fixture
def adapter(tmp_path, model):
    return write_adapter(
        tmp_path / "adapter", adapter_tensors(load_file(model / "model.safetensors"))
    )


@pytest.mark.ml
@pytest.mark.filterwarnings("ignore")
def test_a_merge_is_what_peft_makes(tmp_path, model, adapter):
    """SFT-9, SFT-11: PEFT reads the adapter; in float32 its merge has the same bits."""
    from peft import PeftModel

    from kolm_build.runtime.loading import load

    ran = run_step("merge", tmp_path, inputs={"model": model, "adapter": adapter})
    found = load_file(ran.folder() / "model.safetensors")
    network = PeftModel.from_pretrained(load(model).network, adapter).merge_and_unload()
    wanted = network.state_dict()
    exact = next(iter(found.values())).dtype == torch.float32
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype
        if exact:
            assert torch.equal(tensor, wanted[name]), name
        else:  # PEFT rounds the change before it adds it, and the sum again
            torch.testing.assert_close(tensor, wanted[name], rtol=2**-7, atol=2**-7)


def test_a_merged_matrix_is_rounded_once(tmp_path, model, adapter):
    """SFT-11: against float64 arithmetic, and everything else is copied."""
    ran = run_step("merge", tmp_path, inputs={"model": model, "adapter": adapter})
    base, found = (load_file(at / "model.safetensors") for at in (model, ran.folder()))
    parts = load_file(adapter / "adapter_model.safetensors")
    changed = 0
    for name, tensor in base.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{prefix}A.weight" not in parts:
            assert torch.equal(found[name], tensor)
            continue
        changed += 1
        low, high = parts[f"{prefix}A.weight"].double(), parts[f"{prefix}B.weight"].double()
        wanted = tensor.double() + ALPHA / RANK * high @ low
        unit = 2**-8 if tensor.dtype == torch.bfloat16 else 2**-20
        torch.testing.assert_close(found[name].double(), wanted, rtol=unit, atol=1e-6)
    assert changed == 4
    others = {name: data for name, data in files_of(model).items() if "safetensors" not in name}
    merged = {name: data for name, data in files_of(ran.folder()).items() if name in others}
    assert merged == others


@pytest.mark.parametrize("model", ["fp32"], indirect=True)
@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.layers.9.mlp.up_proj", (128, 64), "does not fit"),
        ("model.layers.0.mlp.up_proj", (127, 64), "does not fit"),
    ],
)
def test_an_adapter_of_another_model_is_refused(tmp_path, model, name, shape, reason):
    """SFT-12."""
    tensors = {
        f"base_model.model.{name}.lora_A.weight": torch.zeros(RANK, shape[1]),
        f"base_model.model.{name}.lora_B.weight": torch.zeros(shape[0], RANK),
    }
    adapter = write_adapter(tmp_path / "adapter", tensors)
    ran = run_step("merge", tmp_path, inputs={"model": model, "adapter": adapter})
    refusal = ran.refusal()
    assert reason in refusal["reason"]
    assert refusal["where"] == f"{name}.weight"


@pytest.mark.parametrize("model", ["fp32"], indirect=True)
@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"peft_type": "XLORA"}, "peft_type"),
        ({"peft_type": "OFT"}, "block_share"),
        ({"bias": "all"}, "bias"),
        ({"use_dora": True}, "model.layers.0.mlp.down_proj"),
        ({"modules_to_save": []}, "modules_to_save"),
        ({"r": 5}, "model.layers.0.mlp.down_proj"),
    ],
)
def test_another_kind_of_adapter_is_refused(tmp_path, model, adapter, change, where):
    path = adapter / "adapter_config.json"
    path.write_bytes(strict_json.dumps(strict_json.loads(path.read_bytes()) | change))
    ran = run_step("merge", tmp_path, inputs={"model": model, "adapter": adapter})
    assert ran.refusal()["where"] == where


@pytest.mark.parametrize("model", ["fp32"], indirect=True)
def test_weights_that_are_not_finite_are_refused(tmp_path, model):
    """NAT-6."""
    tensors = adapter_tensors(load_file(model / "model.safetensors"))
    first = next(iter(tensors))
    tensors[first][0, 0] = float("inf")
    adapter = write_adapter(tmp_path / "adapter", tensors)
    ran = run_step("merge", tmp_path, inputs={"model": model, "adapter": adapter})
    assert "finite" in ran.refusal()["reason"]


def test_merging_imports_neither_transformers_nor_peft():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kolm_build.steps.merge; "
        "sys.exit(any(name in sys.modules for name in ('transformers', 'peft', 'trl')))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
