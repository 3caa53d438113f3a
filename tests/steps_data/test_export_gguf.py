"""A model as a GGUF file: what it holds, what it names, what is refused (spec/exports.md)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, quants
from gguf.constants import GGMLQuantizationType as Kind

from kolm_build.steps import export_gguf, import_gguf
from kolm_build.steps._gguf import read_gguf
from kolm_build.steps._gguf_mixture import MIXTURES, kind_of
from tests.steps_data.calling import run_step
from tests.steps_data.exporting import artifact_of, imported_model, source_of
from tests.support.models import ROOT, tiny_gguf, tiny_llama

NAMES = ["f16", "q8_0", "q4_0", "q4_k_m"]


@pytest.fixture
def artifact(tmp_path):
    return artifact_of(imported_model(tmp_path / "made"), tmp_path / "artifact")


def exported(tmp_path, artifact, kind="f16"):
    """The GGUF file of `artifact`."""
    done = run_step(export_gguf, tmp_path, inputs={"artifact": artifact}, params={"kind": kind})
    return done.out / "tiny.gguf"


def refusal(tmp_path, artifact, kind="f16"):
    done = run_step(export_gguf, tmp_path, inputs={"artifact": artifact}, params={"kind": kind})
    return done.refusal


def changed(tmp_path, change, name="config.json"):
    """An artifact of the tiny model with `change` applied to one of its JSON files."""
    model = imported_model(tmp_path / "made")
    value = json.loads((model / name).read_text())
    change(value)
    (model / name).write_text(json.dumps(value))
    return artifact_of(model, tmp_path / "artifact")


def weights_of(path):
    """Name to shape and float32 values, as the package gguf reads the file."""
    return {
        tensor.name: quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for tensor in GGUFReader(path).tensors
    }


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_an_import_of_an_export_is_the_model(tmp_path, architecture):
    """EXPORT-9, EXPORT-11: every file but what names nothing, to the last bit of half precision."""
    model = imported_model(tmp_path / "made", architecture=architecture)
    artifact = artifact_of(model, tmp_path / "artifact")
    again = run_step(
        import_gguf,
        tmp_path,
        inputs={"source": exported(tmp_path, artifact).parent},
        params={"dtype": "fp32"},
    ).out
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (again / name).read_bytes() == (model / name).read_bytes(), name
    assert (again / "chat_template.jinja").read_bytes() == (
        model / "chat_template.jinja"
    ).read_bytes()
    before, after = (np.frombuffer(_data(one), "<f4") for one in (model, again))
    assert (after == before.astype("<f2").astype("<f4")).all()


def _data(model):
    data = (model / "model.safetensors").read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_rows_of_a_head_are_where_llama_cpp_has_them(tmp_path, architecture):
    """EXPORT-11: an export of an import is the first file's tensors."""
    source = tmp_path / "first.gguf"
    tiny_gguf(source, architecture=architecture, kind="F16")
    model = imported_model(tmp_path / "made", architecture=architecture, kind="F16")
    file = exported(tmp_path, artifact_of(model, tmp_path / "artifact"))
    first, second = weights_of(source), weights_of(file)
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert (second[name] == values).all(), name


@pytest.mark.parametrize("kind", NAMES)
def test_every_kind_is_read_by_the_package_gguf(tmp_path, artifact, kind):
    """EXPORT-9, EXPORT-12: strictly by our own reader, and by ggml's package."""
    file = exported(tmp_path, artifact, kind)
    ours = read_gguf(file)
    theirs = GGUFReader(file)
    assert {one.name: tuple(one.shape[::-1]) for one in theirs.tensors} == {
        name: one.shape for name, one in ours.tensors.items()
    }
    assert ours.values["general.file_type"] == MIXTURES[kind].file_type
    for one in theirs.tensors:
        place = ours.tensors[one.name]
        assert one.data.tobytes() == bytes(ours.data[place.begin : place.end])
        assert np.isfinite(quants.dequantize(one.data, one.tensor_type)).all()


def test_the_file_names_its_artifact(tmp_path, artifact):
    """EXPORT-4."""
    values = read_gguf(exported(tmp_path, artifact)).values
    assert values["kolm.source"] == source_of(artifact)
    assert values["general.name"] == "tiny"
    assert values["general.license"] == "Apache-2.0"


def test_a_model_that_is_not_the_manifests_is_refused(tmp_path, artifact):
    """EXPORT-3."""
    (artifact / "model" / "generation_config.json").write_text("{}")
    told = refusal(tmp_path, artifact)
    assert told["file"] == "model/generation_config.json"
    assert told["reason"] == "the model is not the one that the manifest lists"
    (artifact / "model" / "generation_config.json").unlink()
    assert refusal(tmp_path, artifact)["actual"] == "missing"


def test_the_tokenizer_is_told_as_llama_cpp_reads_it(tmp_path, artifact):
    """EXPORT-10."""
    values = read_gguf(exported(tmp_path, artifact)).values
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert values["tokenizer.ggml.pre"] == "smollm"
    assert values["tokenizer.ggml.merges"] == ("a b",)
    assert values["tokenizer.ggml.eos_token_id"] == 2
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert values["tokenizer.ggml.token_type"][:5] == (3, 3, 3, 3, 1)


def test_a_row_without_a_token_is_unused(tmp_path):
    """EXPORT-10."""
    file = tmp_path / "tokenizer.json"

    def forget(value):
        del value["model"]["vocab"]["ab"]
        value["model"]["merges"] = []

    values = read_gguf(exported(tmp_path, changed(tmp_path, forget, file.name))).values
    assert values["tokenizer.ggml.tokens"][-1] == f"[PAD{len(values['tokenizer.ggml.tokens']) - 1}]"
    assert values["tokenizer.ggml.token_type"][-1] == 5
    assert values["tokenizer.ggml.pre"] == "gpt-2", "without merges no cut changes a token"


def test_the_bos_of_a_template_is_told(tmp_path):
    """EXPORT-10."""
    model = imported_model(tmp_path / "made", tokenizer__ggml__add_bos_token=None)
    value = json.loads((model / "tokenizer.json").read_text())
    bos = value["added_tokens"][0]["content"]
    value["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A"}}],
            },
        ],
    }
    (model / "tokenizer.json").write_text(json.dumps(value))
    values = read_gguf(exported(tmp_path, artifact_of(model, tmp_path / "artifact"))).values
    assert values["tokenizer.ggml.add_bos_token"] is True


def _with(**settings):
    return lambda value: value.update(settings)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (_with(architectures=["GemmaForCausalLM"]), "architectures"),
        (_with(attention_bias=True), "attention_bias"),
        (_with(mlp_bias=True), "mlp_bias"),
        (_with(hidden_act="gelu"), "hidden_act"),
        (_with(partial_rotary_factor=0.5), "partial_rotary_factor"),
        (_with(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5}), "rope_parameters"),
        (_with(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters=None), "rope"),
        (_with(num_hidden_layers=0), "num_hidden_layers"),
        (_with(num_hidden_layers=3), "model.layers.2.input_layernorm.weight"),
        (_with(intermediate_size=64), "mlp.down_proj.weight"),
        (_with(tie_word_embeddings=False), "lm_head.weight"),
        (_with(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_gguf_cannot_say_is_refused_by_its_name(tmp_path, change, where):
    """EXPORT-11."""
    told = refusal(tmp_path, changed(tmp_path, change))
    assert where in told["where"]
    assert told["file"] in {"config.json", "tiny.kolm"}


def _cut(value):
    value["pre_tokenizer"] = {"type": "Whitespace"}


def _wordpiece(value):
    value["model"]["type"] = "WordPiece"


def _suffix(value):
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|im_end|>"}}],
    }


def _other_first(value):
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|pad|>"}}, {"Sequence": {"id": "A"}}],
    }


def _far_id(value):
    value["model"]["vocab"]["far"] = 1 << 20


def _bad_merge(value):
    value["model"]["merges"] = ["a b c"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (_cut, "pre_tokenizer"),
        (_wordpiece, "model.type"),
        (_suffix, "post_processor"),
        (_other_first, "post_processor"),
        (_far_id, "'far'"),
        (_bad_merge, "model.merges"),
    ],
)
def test_a_tokenizer_that_gguf_has_no_name_for_is_refused(tmp_path, change, where):
    """EXPORT-10."""
    told = refusal(tmp_path, changed(tmp_path, change, "tokenizer.json"))
    assert (told["file"], told["where"]) == ("tokenizer.json", where)


def test_a_weight_that_is_not_finite_is_refused(tmp_path):
    """EXPORT-14."""
    model = imported_model(tmp_path / "made")
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    (model / "model.safetensors").write_bytes(data)
    told = refusal(tmp_path, artifact_of(model, tmp_path / "artifact"))
    assert told["reason"] == "a weight that is not a finite number"


@pytest.mark.parametrize("kind", ["f16", "q4_k_m"])
def test_the_bytes_depend_on_no_process(tmp_path, artifact, kind):
    """EXPORT-5: another process, hash seed and number of threads; numpy without AVX2, AVX-512."""
    here = exported(tmp_path, artifact, kind).read_bytes()
    code = (
        "import sys; from pathlib import Path\n"
        "from kolm_build.steps import export_gguf\n"
        "from tests.steps_data.calling import run_step\n"
        "done = run_step(export_gguf, Path(sys.argv[2]), inputs={'artifact': Path(sys.argv[1])},"
        f" params={{'kind': {kind!r}}})\n"
        "print(done.out / 'tiny.gguf')\n"
    )
    for seed in ("1", "2"):
        place = tmp_path / f"process-{seed}"
        place.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, artifact, place],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
            | {
                "OMP_NUM_THREADS": seed,
                "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4" * (seed == "2"),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert Path(done.stdout.strip()).read_bytes() == here


def test_the_mixture_is_that_of_llama_cpp():
    """EXPORT-12, EXPORT-13: SmolLM2's widths, 30 layers of 576 and 1536 columns."""

    def of(name, columns, kind="q4_k_m", is_tied=True):
        shape = (64, columns)
        return kind_of(MIXTURES[kind], name, shape, layers=30, is_tied=is_tied).name

    assert of("token_embd.weight", 576) == "Q8_0"
    assert of("token_embd.weight", 512) == "Q6_K"
    assert of("token_embd.weight", 512, is_tied=False) == "Q4_K"
    assert of("output.weight", 512, is_tied=False) == "Q6_K"
    assert of("token_embd.weight", 576, "q4_0") == "Q8_0"
    assert of("blk.4.attn_q.weight", 576) == "Q5_0"
    assert of("blk.4.attn_q.weight", 96 + 5) == "F16"
    assert of("blk.4.attn_v.weight", 576) == "Q5_0"
    assert of("blk.5.attn_v.weight", 576) == "Q8_0"
    better = [i for i in range(30) if of(f"blk.{i}.ffn_down.weight", 1536) == "Q6_K"]
    assert better == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]
    assert kind_of(MIXTURES["q4_0"], "blk.0.attn_norm.weight", (576,), layers=30, is_tied=True) is (
        Kind.F32
    )


def test_the_tiny_example_is_exported(tmp_path):
    """EXPORT-10: a tokenizer of bytes alone."""
    artifact = artifact_of(tiny_llama(tmp_path / "model"), tmp_path / "artifact")
    assert read_gguf(exported(tmp_path, artifact)).values["tokenizer.ggml.pre"] == "gpt-2"
