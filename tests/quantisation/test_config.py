"""``quantization_config``: compressed-tensors reads it as it is; a reader takes nothing else."""

from __future__ import annotations

import copy

import pytest

from kolm_build.core.quantisation import INT8, SCHEMES, format_of
from kolm_build.core.quantisation_config import (
    LayerGroup,
    QuantisedLayers,
    from_config,
    grouped,
    known_groups,
    to_config,
)
from kolm_build.errors import InvalidRecordError


def layers_of(name):
    """Two layers of different width of the scheme `name`, and an embedding of 8 bits."""
    scheme = SCHEMES[name]
    rows = []
    for layer, columns in (("b.down", 256), ("a.up", 64)):
        grid = scheme.grid(columns)
        rows.append((layer, grid, format_of(grid, scheme.activations), scheme.activations))
    return grouped([*rows, ("embed", INT8, "int-quantized", "")], kept=["z", "head"])


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_written_is_read_back(name):
    """QUANT-30: groups by their first layers, sorted, whatever the order they came in."""
    layers = layers_of(name)
    config = to_config(layers)
    assert from_config(config) == layers
    assert from_config(copy.deepcopy(config)).by_layer().keys() == {"a.up", "b.down", "embed"}
    firsts = [group["targets"][0] for group in config["config_groups"].values()]
    assert firsts == sorted(firsts)
    assert config["ignore"] == ["head", "z"]
    forms = {group["format"] for group in config["config_groups"].values()}
    assert config["format"] == (forms.pop() if len(forms) == 1 else "mixed-precision")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors_writes_the_same(name):
    """QUANT-30, QUANT-32: every key that it knows comes back as it was, through its own records."""
    from compressed_tensors.quantization import QuantizationConfig

    config = to_config(layers_of(name))
    theirs = QuantizationConfig.model_validate(copy.deepcopy(config)).model_dump()
    for key in theirs.keys() & config.keys() - {"config_groups"}:
        assert theirs[key] == config[key], key
    assert set(theirs) - set(config) == {"moe_sparsity_config"}
    for group, ours in config["config_groups"].items():
        other = theirs["config_groups"][group]
        assert other["format"] == ours["format"]
        assert other["targets"] == ours["targets"]
        assert other["weights"] == ours["weights"]
        assert other["input_activations"] == ours["input_activations"]


@pytest.mark.filterwarnings("ignore")
def test_the_version_is_that_of_the_library_it_was_compared_with():
    """QUANT-30."""
    import compressed_tensors

    from kolm_build.core.quantisation_config import VERSION

    assert compressed_tensors.__version__ == VERSION


def test_every_group_that_is_known_is_told_from_the_others():
    """QUANT-31."""
    for grid, form, activations in known_groups():
        group = LayerGroup(layers=("a",), grid=grid, form=form, activations=activations)
        layers = QuantisedLayers(groups=(group,))
        assert from_config(to_config(layers)) == layers


def spoiled(change):
    config = to_config(layers_of("w4a16"))
    change(config)
    return config


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda c: c.update(quant_method="gptq"), "quant_method"),
        (lambda c: c.update(quantization_status="frozen"), "quantization_status"),
        (lambda c: c.update(kv_cache_scheme={}), "kv_cache_scheme"),
        (lambda c: c.update(more=1), "more"),
        (lambda c: c.pop("version"), "version"),
        (lambda c: c.update(version="0.19.0"), "version"),
        (lambda c: c["config_groups"]["group_0"].update(targets=["Linear", "b"]), "group_0"),
        (lambda c: c["config_groups"]["group_0"].update(targets=["re:.*"]), "group_0"),
        (lambda c: c["config_groups"]["group_0"].update(format="marlin"), "group_0"),
        (lambda c: c["config_groups"]["group_0"].pop("format"), "group_0"),
        (lambda c: c["config_groups"]["group_0"]["weights"].update(num_bits=2), "group_0"),
        (lambda c: c["config_groups"]["group_0"]["weights"].update(group_size=16), "group_0"),
        (lambda c: c["config_groups"]["group_0"]["weights"].update(actorder="weight"), "group_0"),
        (lambda c: c["config_groups"]["group_0"].update(output_activations={}), "group_0"),
        (lambda c: c["config_groups"]["group_1"].update(targets=["a.up"]), None),
        (lambda c: c.update(config_groups={}), None),
        (lambda c: c.update(ignore=["z", "head"]), "ignore"),
    ],
)
def test_a_reader_refuses_what_it_does_not_know(change, where):
    """QUANT-31."""
    with pytest.raises(InvalidRecordError) as refused:
        from_config(spoiled(change))
    assert "quantization_config" in str(refused.value.where)
    assert where is None or where in str(refused.value.where)


@pytest.mark.parametrize("value", [None, [], "int4", {"quant_method": 4}])
def test_what_is_no_configuration_is_refused(value):
    """QUANT-31."""
    with pytest.raises(InvalidRecordError):
        from_config(value)
