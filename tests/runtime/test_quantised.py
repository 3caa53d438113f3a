"""A quantised model computes what its codes stand for, on the pages of its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kolm_build.core.numerics import Numerics
from kolm_build.core.quantisation_config import KEY
from kolm_build.core.request import Circumstances
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics import kernels
from kolm_build.numerics.apply import applied
from kolm_build.runtime.files import find_model
from kolm_build.runtime.generate import continue_greedily, read_prompts
from kolm_build.runtime.loading import load
from kolm_build.runtime.quantised import QuantisedEmbedding, QuantisedLinear, quantised_modules
from kolm_build.runtime.ragged import joined
from kolm_build.steps._counts import Architecture
from tests.runtime.artifacts import write_artifact
from tests.support.models import tiny_llama
from tests.support.quantised import plain_of, quantised

SCHEMES = ("w8a16", "w4a16", "w4a16-asym", "fp8", "nvfp4a16", "mxfp4")
LAYER = "model.layers.1.mlp.down_proj"

portable = pytest.mark.skipif(
    not kernels.LIBRARY.is_file(), reason="the portable kernels are not compiled"
)


def computing():
    here = Circumstances(kernels=str(kernels.LIBRARY), threads=1)
    return applied(Numerics(cls="portable-1", seed=1), here)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture
def make(source, tmp_path):
    def made(scheme="w4a16", embeddings="int8"):
        return quantised(source, tmp_path / scheme, scheme, embeddings=embeddings)

    return made


def prompt(length, seed=0):
    generator = torch.Generator().manual_seed(100 * seed + length)
    return torch.randint(4, 260, (length,), generator=generator).tolist()


@portable
@pytest.mark.parametrize("embeddings", ["keep", "int8"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_logits_are_those_of_the_float_model_of_the_same_numbers(make, scheme, embeddings):
    """GEN-42: bit for bit."""
    folder = make(scheme, embeddings)
    with computing(), torch.inference_mode():
        for length in (1, 2, 37):
            ids = torch.tensor([prompt(length)])
            logits = load(folder).network(input_ids=ids).logits
            assert torch.equal(logits, load(plain_of(folder)).network(input_ids=ids).logits)


@portable
def test_an_artifact_computes_what_its_folder_does(make, tmp_path):
    """GEN-40."""
    folder = make()
    artifact = write_artifact(tmp_path / "tiny.kolm", folder)
    ids = torch.tensor([prompt(9)])
    with computing(), torch.inference_mode():
        one, other = (load(path).network(input_ids=ids).logits for path in (folder, artifact))
    assert torch.equal(one, other)


@portable
@pytest.mark.parametrize("scheme", ["w4a16", "nvfp4a16"])
def test_a_row_of_a_quantised_model_does_not_depend_on_its_neighbours(make, scheme):
    """GEN-43, EVAL-2."""
    network = load(make(scheme)).network
    prompts = [prompt(length) for length in (3, 19, 40)]
    with computing():
        prefixes = [read_prompts(network, [ids]) for ids in prompts]
        logits = [prefix.logits for prefix in prefixes]
        together = continue_greedily(joined(prefixes, room=6), max_new_tokens=6, stop_ids=set())
        for row, ids in enumerate(prompts):
            alone = read_prompts(network, [ids])
            assert torch.equal(alone.logits, logits[row])
            (said,) = continue_greedily(alone, max_new_tokens=6, stop_ids=set())
            assert said == together[row]


@pytest.mark.parametrize("embeddings", ["keep", "int8"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_tensor_lies_in_the_file(make, scheme, embeddings):
    """GEN-41: nothing is copied, nothing is there as floating point that is not in the file."""
    folder = make(scheme, embeddings)
    weights = find_model(folder).weights()
    data = sum(one.nbytes for one in weights.tensors.values())
    network = load(folder).network
    tensors = [*network.parameters()]
    for module in quantised_modules(network):
        tensors += module.tensors().values()
    places = {one.data_ptr(): one.nbytes for one in tensors}
    assert sum(places.values()) == data
    maps = Path("/proc/self/maps").read_text().splitlines()
    rows = [row.split() for row in maps if str(folder / "model.safetensors") in row]
    spans = [[int(end, 16) for end in row[0].split("-")] for row in rows]
    for start, size in places.items():
        assert any(low <= start and start + size <= high for low, high in spans)


def test_the_head_is_the_embedding_where_they_are_tied(make):
    network = load(make("w4a16", "int8")).network
    assert isinstance(network.lm_head, QuantisedLinear)
    assert isinstance(network.model.embed_tokens, QuantisedEmbedding)
    assert network.lm_head.codes().data_ptr() == network.model.embed_tokens.codes().data_ptr()
    plain = load(make("w8a16", "keep")).network
    assert plain.lm_head.weight is plain.model.embed_tokens.weight


@pytest.mark.parametrize("embeddings", ["keep", "int8"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_weights_of_a_quantised_model_are_counted_unpacked(make, source, scheme, embeddings):
    """EVAL-8, EVAL-9: as many as before, and the bytes of all tensors in the file."""
    folder = make(scheme, embeddings)
    found, before = (Architecture.of(load(one).network) for one in (folder, source))
    assert (found.parameters, found.body, found.head) == (
        before.parameters,
        before.body,
        before.head,
    )
    assert found.element_bytes == before.element_bytes
    assert found.parameter_bytes == sum(
        one.nbytes for one in load_file(folder / "model.safetensors").values()
    )


# ------------------------------------------------------------------------------------ activations


def layer_of(folder):
    return load(folder).network.get_submodule(LAYER)


def seen(rows=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, rows, 128, generator=generator) * 2
    x[0, 1] = 0
    return x.to(dtype)


def by_integers(layer, x, scale=None):
    """NUM-132 to NUM-134 in NumPy, for a scale a row of the weight: one product, one rounding."""
    wide = x.float().numpy()
    s = np.abs(wide).max(-1, keepdims=True) / np.float32(127) if scale is None else scale
    with np.errstate(invalid="ignore"):
        codes = np.rint(np.clip(wide / s, -127, 127))
    codes = np.where(s == 0, 0, codes).astype(np.int64)
    sums = (codes @ layer.weight.numpy().astype(np.int64).T).astype(np.float32)
    return torch.from_numpy(sums * (s * layer.weight_scale.float().numpy().T))


@portable
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_become_integers_with_a_scale_for_each_row(make, dtype):
    """GEN-47."""
    layer, x = layer_of(make("w8a8", "keep")), seen(dtype=dtype)
    with computing(), torch.inference_mode():
        assert torch.equal(layer(x), by_integers(layer, x).to(dtype))


@portable
def test_activations_become_integers_with_the_scale_in_the_file(make):
    """GEN-47."""
    layer, x = layer_of(make("w8a8-static", "keep")), seen()
    with computing(), torch.inference_mode():
        assert torch.equal(layer(x), by_integers(layer, x, layer.input_scale.numpy()))


@portable
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_rounded_to_the_grid_of_nvfp4(make, dtype):
    """GEN-47."""
    from kolm_build.core.quantisation import NVFP4
    from kolm_build.numerics.quantised import nearest, scales, unpack, values

    layer, x = layer_of(make("nvfp4", "keep")), seen(dtype=dtype)
    with computing(), torch.inference_mode():
        rows = x.float().reshape(-1, 128)
        on_grid = values(nearest(rows, scales(rows, NVFP4, global_scale=layer.input_global_scale)))
        assert not torch.equal(on_grid, rows)
        weight = values(unpack(layer.tensors(), NVFP4, layer.group.form, (64, 128)))
        wanted = torch.nn.functional.linear(on_grid, weight).reshape(2, 5, 64).to(dtype)
        assert torch.equal(layer(x), wanted)


ROUNDED = ("w8a8", "w8a8-static", "w4a8", "nvfp4")


@portable
@pytest.mark.parametrize("scheme", ROUNDED)
def test_rounded_activations_do_not_depend_on_their_neighbours(make, scheme):
    """GEN-43."""
    network = load(make(scheme)).network
    prompts = [prompt(20, seed) for seed in range(3)]
    with computing():
        together = read_prompts(network, prompts)
        for row, ids in enumerate(prompts):
            assert torch.equal(read_prompts(network, [ids]).logits[0], together.logits[row])


@portable
@pytest.mark.parametrize("scheme", [*SCHEMES, *ROUNDED])
def test_stock_kernels_compute_the_same_up_to_rounding(make, scheme):
    """GEN-42, GEN-47: in `native-1`."""
    layer, x = layer_of(make(scheme, "keep")), seen()
    with torch.inference_mode():
        stock = layer(x)
        with computing():
            portable_ = layer(x)
    torch.testing.assert_close(stock, portable_, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------- bad input


def refused(folder):
    with pytest.raises(InvalidRecordError) as caught:
        load(folder)
    assert caught.value.file == str(folder)
    return caught.value


def edit(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_missing_scale_is_refused_by_name(make):
    """GEN-44."""
    folder = make()
    edit(folder, lambda tensors: tensors.pop(f"{LAYER}.weight_scale"))
    assert f"missing: {LAYER}.weight_scale" in refused(folder).actual


def test_a_tensor_too_many_is_refused_by_name(make):
    """GEN-44: the plain weight beside its codes, say."""
    folder = make()
    edit(folder, lambda tensors: tensors.update({f"{LAYER}.weight": torch.zeros(64, 128)}))
    assert f"unexpected: {LAYER}.weight" in refused(folder).actual


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("weight_packed", lambda one: one[:, :-1]),
        ("weight_packed", lambda one: one.to(torch.int64)),
        ("weight_scale", lambda one: one.repeat(1, 2)),
        ("weight_scale", lambda one: one.double()),
        ("weight_shape", lambda one: one[:1]),
    ],
)
def test_a_tensor_of_another_shape_or_dtype_is_refused(make, part, change):
    """GEN-44."""
    folder = make()
    name = f"{LAYER}.{part}"
    edit(folder, lambda tensors: tensors.update({name: change(tensors[name]).contiguous()}))
    error = refused(folder)
    assert error.where == f"model.safetensors: {name}"
    assert error.expected != error.actual


@pytest.mark.parametrize(
    ("scheme", "part", "value"),
    [
        ("w4a16", "weight_scale", torch.inf),
        ("w4a16", "weight_shape", 7),
        ("fp8", "weight", torch.nan),
        ("nvfp4a16", "weight_scale", torch.nan),
        ("nvfp4a16", "weight_global_scale", torch.nan),
        ("mxfp4", "weight_scale", 255),
        ("w8a8-static", "input_scale", torch.nan),
        ("w8a8-static", "input_scale", 0),
        ("nvfp4", "input_global_scale", -1),
        ("nvfp4a16", "weight_global_scale", 0),
    ],
)
def test_codes_that_stand_for_nothing_are_refused(make, scheme, part, value):
    """GEN-45."""
    folder = make(scheme)
    name = f"{LAYER}.{part}"

    def change(tensors):
        tensors[name].reshape(-1)[:1] = torch.tensor([value]).to(tensors[name].dtype)

    edit(folder, change)
    error = refused(folder)
    assert error.where == f"model.safetensors: {name}"
    assert error.reason == "a quantised layer says what cannot be"


def configure(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config[KEY].update(quant_method="bitsandbytes"),
        lambda config: config[KEY].update(format="marlin-24"),
        lambda config: config[KEY].update(surprise=1),
        lambda config: config.update({KEY: "int4"}),
        lambda config: config[KEY]["config_groups"]["group_0"].update(targets=["Linear"]),
        lambda config: config[KEY]["config_groups"]["group_0"].update(targets=["model.norm"]),
        lambda config: config.pop("dtype"),
        lambda config: config.update(dtype="float8_e4m3fn"),
    ],
)
def test_an_unknown_form_of_quantisation_is_refused(make, change):
    """GEN-44, GEN-46."""
    folder = make("w8a16", "keep")
    configure(folder, change)
    assert "config.json" in refused(folder).where or KEY in refused(folder).where


def test_a_plain_model_with_eight_bit_weights_is_refused(source, tmp_path):
    """GEN-46: without a configuration nobody knows what they stand for."""
    import shutil

    folder = tmp_path / "plain"
    shutil.copytree(source, folder)
    name = f"{LAYER}.weight"
    edit(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    assert refused(folder).where == f"model.safetensors: {name}"
