import json
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kolm_build.errors import InvalidRecordError
from kolm_build.steps import import_model
from kolm_build.steps._weights import check_finite, to_bytes
from tests.steps_data.calling import run_step
from tests.support.models import tiny_llama


@pytest.fixture
def model(tmp_path):
    return tiny_llama(tmp_path / "model")


def ran(tmp_path, model, **params):
    return run_step(import_model, tmp_path, inputs={"source": model}, params=params)


def contents(done):
    return {path.name: path.read_bytes() for path in done.out.iterdir()}


def edit(path, **changes):
    table = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def read(data):
    """A safetensors file's metadata, and name to dtype, shape and bytes."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = data[8 + length :]
    return metadata, {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def write(path, tensors):
    """A safetensors file in the order given, without padding, with a foreign entry."""
    header, body = {"__metadata__": {"from": "somebody"}}, b""
    for name, (dtype, shape, data) in tensors.items():
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"data_offsets": offsets, "shape": shape, "dtype": dtype}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def shard(model, *, names=("model-1-of-2.safetensors", "model-2-of-2.safetensors")):
    """Put the model's tensors into two shards with an index."""
    _, tensors = read((model / "model.safetensors").read_bytes())
    (model / "model.safetensors").unlink()
    placed = {name: names[index % 2] for index, name in enumerate(reversed(list(tensors)))}
    for file in names:
        write(model / file, {name: tensors[name] for name, at in placed.items() if at == file})
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def test_the_tensors_stay_as_they_are(tmp_path, model):
    before = read((model / "model.safetensors").read_bytes())[1]
    metadata, after = read(contents(ran(tmp_path, model))["model.safetensors"])
    assert metadata == {"format": "pt"}
    assert after == before


def test_shards_give_the_same_folder_as_one_file(tmp_path, model):
    """STEP-27."""
    one = contents(ran(tmp_path, model))
    shard(model)
    assert contents(ran(tmp_path, model)) == one


def test_the_folder_does_not_tell_who_saved_it(tmp_path, model):
    """STEP-18."""
    one = contents(ran(tmp_path, model))
    edit(model / "config.json", transformers_version="4.1.0", _name_or_path="/home/me")
    edit(model / "config.json", dtype=None, torch_dtype="float32")
    edit(model / "generation_config.json", transformers_version="4.1.0", _from_model_config=True)
    (model / "README.md").write_text("hello")
    (model / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    edit(model / "tokenizer_config.json", chat_template=template, eos_token=None)
    assert contents(ran(tmp_path, model)) == one


def test_without_generation_settings_the_token_ids_are_those_of_the_configuration(tmp_path, model):
    one = contents(ran(tmp_path, model))
    (model / "generation_config.json").unlink()
    assert contents(ran(tmp_path, model)) == one


def test_the_dtype_is_changed_where_the_recipe_names_one(tmp_path, model):
    found = contents(ran(tmp_path, model, dtype="bf16"))
    assert json.loads(found["config.json"])["dtype"] == "bfloat16"
    assert {dtype for dtype, _, _ in read(found["model.safetensors"])[1].values()} == {"BF16"}
    assert ran(tmp_path, model, dtype="int8").refusal["where"] == "params.dtype"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pytorch_model.bin", b"x"),
        ("sub/model.PT", b"x"),
        ("modeling_tiny.py", b"x"),
        ("weights.txt", b"\x80\x04\x95rest"),
        ("LICENSE", b"PK\x03\x04rest"),
        ("notes.md", b"\x7fELFrest"),
    ],
)
def test_a_file_that_can_hold_code_is_refused(tmp_path, model, name, data):
    """STEP-25."""
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(data)
    refusal = ran(tmp_path, model).refusal
    assert (refusal["reason"], refusal["file"]) == ("a file that can hold code", name)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_that_wants_to_run_code_is_refused(tmp_path, model, file):
    """STEP-25."""
    edit(model / file, auto_map={"AutoModel": "modeling.Model"})
    refusal = ran(tmp_path, model).refusal
    assert (refusal["file"], refusal["where"]) == (file, "auto_map")


@pytest.mark.parametrize(
    "classes", [["BertModel"], ["T5ForConditionalGeneration"], [], None, ["A", "BForCausalLM"], "x"]
)
def test_what_is_no_causal_language_model_is_refused(tmp_path, model, classes):
    """STEP-26."""
    edit(model / "config.json", architectures=classes)
    refusal = ran(tmp_path, model).refusal
    assert refusal["reason"] == "not a causal language model"
    assert refusal["where"] == "architectures"


def test_quantised_weights_are_refused(tmp_path, model):
    """STEP-26."""
    edit(model / "config.json", quantization_config={"quant_method": "gptq"})
    assert ran(tmp_path, model).refusal["where"] == "quantization_config"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_missing_is_named(tmp_path, model, name):
    (model / name).unlink()
    assert ran(tmp_path, model).refusal["file"] == name


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1, "a": 2}', '{"a": NaN}', "[]", "\xff", "[" * 9999]
)
def test_a_table_that_is_not_json_is_named(tmp_path, model, text):
    (model / "config.json").write_bytes(text.encode("latin-1"))
    refusal = ran(tmp_path, model).refusal
    assert (refusal["code"], refusal["file"]) == ("input.invalid", "config.json")


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_cut_weights_file_is_refused(tmp_path, model, cut):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    refusal = ran(tmp_path, model).refusal
    assert (refusal["code"], refusal["file"]) == ("input.invalid", "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path, model, value):
    """STEP-19."""
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", value))
    refusal = ran(tmp_path, model).refusal
    assert refusal["where"] == "model.norm.weight"
    assert refusal["actual"] == "1 of 64 values, first at 63"


def test_a_weight_that_overflows_in_fp16_is_refused(tmp_path, model):
    """STEP-19."""
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", 70000.0))
    assert ran(tmp_path, model, dtype="bf16").status == 0
    refusal = ran(tmp_path, model, dtype="fp16").refusal
    assert refusal["where"] == "model.norm.weight"
    assert "bf16" in refusal["advice"]


def test_a_tensor_of_integers_is_refused(tmp_path, model):
    write(model / "model.safetensors", {"a": ("I8", [1], b"1")})
    assert ran(tmp_path, model).refusal["actual"] == "I8"


@pytest.mark.parametrize("change", ["moved", "missing", "unlisted", "outside", "repeated"])
def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path, model, change):
    """STEP-27."""
    shard(model)
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, file = next(iter(index["weight_map"].items()))
    first, second = sorted(set(index["weight_map"].values()))
    if change == "moved":
        index["weight_map"][name] = second if file == first else first
    elif change == "missing":
        (model / first).unlink()
    elif change == "unlisted":
        del index["weight_map"][name]
    elif change == "outside":
        shutil.copy(model / file, tmp_path / "x.safetensors")
        index["weight_map"][name] = "../x.safetensors"
    else:
        shutil.copy(model / first, model / second)
    path.write_text(json.dumps(index))
    assert ran(tmp_path, model).refusal["code"] == "input.invalid"


FLOATS = arrays.arrays(np.uint32, st.integers(1, 64), elements=st.integers(0, 2**32 - 1)).map(
    lambda bits: np.nan_to_num(bits.view(np.float32), posinf=1.0, neginf=1.0)
)


@given(FLOATS, st.sampled_from(["BF16", "F16"]))
def test_a_change_of_dtype_rounds_as_torch_does(values, dtype):
    """STEP-20: once, to nearest, ties to even."""
    import torch

    there = {"BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    theirs = torch.from_numpy(values.copy()).to(there).view(torch.uint8).numpy().tobytes()
    assert bytes(to_bytes(values, dtype)) == theirs


@given(FLOATS)
def test_float32_stays_as_it_is(values):
    assert bytes(to_bytes(values, "F32")) == values.tobytes()
    check_finite(to_bytes(values, "F32"), "F32", "x")


def test_the_largest_float32_is_infinite_in_bf16():
    values = np.array([3.4028235e38], np.float32)
    with pytest.raises(InvalidRecordError):
        check_finite(to_bytes(values, "BF16"), "BF16", "x")


@pytest.mark.ml
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_the_folder_whole(tmp_path, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shard(model)
    done = ran(tmp_path, model, dtype="bf16")
    _, told = AutoModelForCausalLM.from_pretrained(done.out, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(done.out)
    assert tokenizer.decode(tokenizer("h\u00e9 <|im_end|>").input_ids) == "h\u00e9 <|im_end|>"
