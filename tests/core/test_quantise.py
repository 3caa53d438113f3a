"""spec/recipe.md, "Quantisation": the section [quantise], and what the pipeline becomes."""

import pytest

from kolm_build.core.derivation import OutputInput
from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.quantisation import SCHEMES
from kolm_build.core.quantise_choices import METHODS, is_calibrated
from kolm_build.core.quantise_reader import check_bits
from kolm_build.core.recipe import parse_recipe
from kolm_build.errors import InvalidRecordError
from kolm_build.steps.table import STEPS
from tests.core.samples import FULL, PLATFORM, digest, lock, recipe

SETS = """
[sets.more]
from = "path:./more.jsonl"
schema = "texts"
text = "{t}"

[sets.judged]
from = "path:./judged.jsonl"
schema = "feedback"
prompt = "{p}"
answer = "{a}"
good = "{g}"
"""


def section(text="", *, scheme="w4a16"):
    return f'{FULL}\n[quantise]\nscheme = "{scheme}"\n{text}\n{SETS}'


def quantise(text="", *, scheme="w4a16"):
    return recipe(section(text, scheme=scheme)).pipeline.quantise


def refused(text="", *, scheme="w4a16"):
    with pytest.raises(InvalidRecordError) as caught:
        parse_recipe(section(text, scheme=scheme), file="kolm.toml")
    assert caught.value.file == "kolm.toml"
    return caught.value


def made(text):
    parsed = recipe(text)
    locked = lock(parsed)
    return instantiate(
        parsed, locked, steps=STEPS, platform=PLATFORM, story=lambda _: digest("story")
    )


def needs(instance, node):
    names = {digest: name for name, digest in instance.digests.items()}
    return {
        role: f"{names[one.derivation]}.{one.output}"
        for role, one in instance.nodes[node].inputs
        if isinstance(one, OutputInput)
    }


def test_a_section_is_read_with_its_defaults():
    """RECIPE-11."""
    read = quantise()
    assert (read.scheme, read.method, read.rows) == ("w4a16", "rtn", None)
    assert dict(read.params) == {
        "embeddings": "keep",
        "group": 0,
        "keep": "",
        "method": "rtn",
        "scheme": "w4a16",
    }


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("gptq", {"damping": "0.01", "act_order": "static"}),
        ("awq", {"grid": 20}),
        ("smoothquant", {"strength": "0.5"}),
    ],
)
def test_a_method_has_its_parameters_and_is_calibrated(method, own):
    """RECIPE-31, RECIPE-32."""
    read = quantise(f'method = "{method}"')
    assert read.rows == "dataset"
    shared = {"embeddings", "group", "keep", "method", "scheme"}
    rows = {"calibration_length": 512, "calibration_rows": 128}
    assert {n: v for n, v in read.params if n not in shared} == own | rows


def test_a_decimal_number_has_one_form():
    """RECIPE-2."""
    assert quantise('method = "gptq"\ndamping = "1e-2"') == quantise('method = "gptq"')


def test_patterns_are_a_set():
    """RECIPE-35."""
    one = quantise('keep = ["model.layers.1.*", "*.down_proj", "*.down_proj"]')
    assert dict(one.params)["keep"] == "*.down_proj\nmodel.layers.1.*"


def test_it_is_calibrated_on_training_rows_or_on_a_set():
    """RECIPE-32."""
    assert quantise('method = "awq"\ncalibration = "train"').rows == "dataset"
    assert quantise('method = "awq"\ncalibration = "more"').rows == "dataset-more"
    assert quantise('calibration = "more"', scheme="w8a8-static").rows == "dataset-more"


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("method", METHODS)
def test_rows_are_needed_where_something_is_calibrated_and_nowhere_else(scheme, method):
    """RECIPE-31."""
    static = SCHEMES[scheme].activations == "static"
    assert is_calibrated(SCHEMES[scheme], method) is (static or method != "rtn")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('method = "gtpq"', "quantise.method"),
        ('methood = "gptq"', "quantise.methood"),
        ('embeddings = "int2"', "quantise.embeddings"),
        ("group = 48", "quantise.group"),
        ("group = -32", "quantise.group"),
        ('keep = [""]', "quantise.keep[0]"),
        ('keep = "lm_head"', "quantise.keep"),
        ('damping = "0.01"', "quantise.damping"),
        ("grid = 20", "quantise.grid"),
        ('method = "awq"\ngrid = 0', "quantise.grid"),
        ('method = "awq"\ndamping = "0.01"', "quantise.damping"),
        ('method = "gptq"\ndamping = "2"', "quantise.damping"),
        ('method = "gptq"\ndamping = "0.0"', "quantise.damping"),
        ('method = "smoothquant"\nstrength = "0"', "quantise.strength"),
        ('method = "gptq"\nact_order = "dynamic"', "quantise.act_order"),
        ('method = "smoothquant"\nstrength = "1.1"', "quantise.strength"),
        ('calibration = "train"', "quantise.calibration"),
        ("calibration_rows = 4", "quantise.calibration_rows"),
        ('method = "awq"\ncalibration_rows = 0', "quantise.calibration_rows"),
        ('method = "awq"\ncalibration_length = 0', "quantise.calibration_length"),
        ('method = "awq"\ncalibration = "moore"', "quantise.calibration"),
        ('method = "awq"\ncalibration = "judged"', "quantise.calibration"),
        ('method = "awq"\ncalibration = "holdout"', "quantise.calibration"),
        ('allow_below_3_bits = "yes"', "quantise.allow_below_3_bits"),
    ],
)
def test_what_has_no_use_or_no_sense_is_refused_at_its_path(text, where):
    """RECIPE-1, RECIPE-31, RECIPE-32."""
    assert refused(text).where == where


def test_a_scheme_that_does_not_exist_is_refused_with_the_nearest():
    """RECIPE-30."""
    error = refused(scheme="w4a6")
    assert (error.where, error.reason) == ("quantise.scheme", "unknown scheme")
    assert error.advice in {"Did you mean 'w4a16'?", "Did you mean 'w4a8'?"}


def test_groups_are_a_choice_only_where_the_scheme_leaves_one():
    """RECIPE-31."""
    assert dict(quantise("group = 32").params)["group"] == 32
    assert refused("group = 32", scheme="w8a16").where == "quantise.group"
    assert refused("group = 32", scheme="nvfp4a16").where == "quantise.group"


def test_a_section_without_a_scheme_is_refused():
    """RECIPE-1."""
    with pytest.raises(InvalidRecordError) as caught:
        parse_recipe(f"{FULL}\n[quantise]\n", file="kolm.toml")
    assert caught.value.where == "quantise.scheme"


def test_a_misspelt_section_gets_a_suggestion():
    """RECIPE-1."""
    with pytest.raises(InvalidRecordError) as caught:
        parse_recipe(f'{FULL}\n[quantize]\nscheme = "w4a16"\n', file="kolm.toml")
    assert caught.value.advice == "Did you mean 'quantise'?"


@pytest.mark.parametrize(("bits", "allowed"), [(3, False), (4, False), (2, True), (1, True)])
def test_enough_bits_or_a_permission(bits, allowed):
    """RECIPE-30."""
    check_bits("w2a16", bits, allowed=allowed)


@pytest.mark.parametrize("bits", [1, 2])
def test_fewer_than_three_bits_need_a_permission(bits):
    """RECIPE-30."""
    with pytest.raises(InvalidRecordError) as caught:
        check_bits("w2a16", bits, allowed=False)
    assert caught.value.where == "scheme"
    assert "allow_below_3_bits = true" in caught.value.advice


def test_the_permission_is_no_parameter():
    """RECIPE-30."""
    assert quantise("allow_below_3_bits = true") == quantise()


def test_the_model_is_judged_before_and_after():
    """RECIPE-9, RECIPE-33."""
    instance = made(section('method = "gptq"'))
    assert needs(instance, "full-evaluation") == {
        "holdout": "dataset.holdout",
        "model": "merge-1.out",
    }
    assert needs(instance, "full-score") == {
        "base": "base-evaluation.out",
        "evaluation": "full-evaluation.out",
        "model": "merge-1.out",
    }
    assert needs(instance, "quantise") == {"calibration": "dataset.train", "model": "merge-1.out"}
    assert needs(instance, "evaluation")["model"] == "quantise.out"
    assert needs(instance, "score")["model"] == "quantise.out"
    assert needs(instance, "score")["evaluation"] == "evaluation.out"
    assert needs(instance, "gate") == {"evaluation": "evaluation.out", "score": "score.out"}
    assert needs(instance, "package") == {
        "base": "base-evaluation.out",
        "evaluation": "evaluation.out",
        "full": "full-evaluation.out",
        "full-score": "full-score.out",
        "gate": "gate.out",
        "holdout": "dataset.holdout",
        "model": "quantise.out",
        "quantisation": "quantise.report",
        "score": "score.out",
    }
    assert "package" in instance.targets
    nodes = instance.nodes
    assert nodes["full-score"].params == nodes["score"].params
    assert nodes["full-evaluation"].params == nodes["evaluation"].params
    assert dict(nodes["quantise"].params)["damping"] == "0.01"


def test_what_is_not_calibrated_has_no_rows():
    """RECIPE-33."""
    assert needs(made(section()), "quantise") == {"model": "merge-1.out"}
    rows = made(section('method = "awq"\ncalibration = "more"'))
    assert needs(rows, "quantise")["calibration"] == "dataset-more.train"
    assert needs(rows, "dataset-more")["against"] == "dataset.compared"


def test_the_story_tells_of_both_judgements():
    """ART-10: the verifier finds every derivation that the evidence follows from."""
    told = {}
    parsed = recipe(section())
    instantiate(
        parsed,
        lock(parsed),
        steps=STEPS,
        platform=PLATFORM,
        story=lambda above: told.update(above) or digest("story"),
    )
    assert {"quantise", "full-evaluation", "full-score", "gate"} <= told.keys()


def test_a_section_changes_nothing_above_it():
    """RECIPE-34: the stages of a recipe are used again when it is quantised."""
    plain, quantised = made(FULL + SETS), made(section())
    same = {n for n in plain.nodes if plain.digests[n] == quantised.digests[n]}
    assert plain.nodes.keys() - same == {"evaluation", "score", "gate", "package"}
    full, before = quantised.nodes["full-evaluation"], plain.nodes["evaluation"]
    content = {need: digest(str(need)) for need in full.needs}
    assert full.resolve(content).resolved_digest == before.resolve(content).resolved_digest


def test_its_nodes_are_reserved_only_where_there_is_a_section():
    """RECIPE-7, RECIPE-9."""
    step = '\n[[step]]\nname = "quantise"\nstep = "script"\n'
    assert made(FULL + step).nodes["quantise"].step == "script"
    assert needs(made(FULL + step), "package")["model"] == "merge-1.out"
    with pytest.raises(InvalidRecordError):
        parse_recipe(section() + step)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("", "w4a16"),
        ('method = "gptq"\ndamping = "0.1"\nact_order = "none"', "w4a16"),
        ('method = "awq"\ngrid = 3\ngroup = 32\nkeep = ["*.k_proj"]', "w4a16-asym"),
        ('method = "smoothquant"\nstrength = "0.8"\ncalibration_rows = 7', "w8a8"),
        ('embeddings = "int8"\ncalibration_length = 64', "w8a8-static"),
    ],
)
def test_the_step_takes_what_the_recipe_gives(text, scheme):
    """RECIPE-33: both read one set of names, bounds and defaults."""
    from kolm_build.steps.quantisation.params import QuantiseParams

    read = quantise(text, scheme=scheme)
    params = QuantiseParams.parse(dict(read.params))
    assert params.is_calibrated is (read.rows is not None)
    assert params.scheme.name == read.scheme
    assert "\n".join(params.keep) == dict(read.params)["keep"]
    for name in ("group", "embeddings", "calibration_rows", "grid", "act_order"):
        assert getattr(params, name) == dict(read.params).get(name, getattr(params, name))
