"""The scripts of examples/learning: the same rows and weights everywhere, by integers alone."""

import hashlib
import json
import struct

import pytest

from kolm_build.steps import import_model, script
from tests.steps_data.calling import run_step
from tests.support.models import ROOT, example

LEARNING = ROOT / "examples" / "learning"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_of(out):
    return [json.loads(line) for line in (out / "rows.jsonl").read_text("utf-8").splitlines()]


def ran(tmp_path, entry, params, **inputs):
    """What a script of the examples makes, run as the step runs it."""
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / entry).write_bytes((LEARNING / entry).read_bytes())
    given = {"script": folder, **inputs}
    return run_step(script, tmp_path, inputs=given, params={"entry": entry, **params}).out


def test_the_small_model_has_the_same_bytes_everywhere(tmp_path):
    out = ran(tmp_path, "model.py", {})
    assert sha256(out / "model.safetensors") == (
        "22b8b674157813b6e49242abcbe119e8d90354eb7fea657e8dffeee09dde264a"
    )
    assert run_step(import_model, tmp_path, inputs={"source": out}).status == 0


def test_the_small_model_speaks_the_words_of_the_tiny_one(tmp_path):
    tiny = example(ROOT / "examples" / "tiny" / "model.py")
    out = ran(tmp_path, "model.py", {})
    assert json.loads((out / "tokenizer.json").read_text()) == tiny.tokenizer()
    assert (out / "chat_template.jinja").read_text() == tiny.CHAT_TEMPLATE


def test_a_model_has_the_size_that_is_asked_for(tmp_path):
    sizes = {"hidden": 64, "intermediate": 128, "layers": 2, "heads": 4, "kv_heads": 2}
    tiny = example(ROOT / "examples" / "tiny" / "model.py")
    out = ran(tmp_path, "model.py", sizes)
    (length,) = struct.unpack("<Q", (out / "model.safetensors").read_bytes()[:8])
    header = json.loads((out / "model.safetensors").read_bytes()[8 : 8 + length])
    assert {name: tuple(one["shape"]) for name, one in header.items()} == tiny.shapes()
    assert sha256(out / "model.safetensors") == (
        "6cb6cd6b666cbf8123ffb3948eedc50195ec320498105afb2c3ab357063a8be0"
    )


def teacher(folder, *, dtype="BF16"):
    """A model of three words and six columns: the embeddings are 0, 1, 2, … in bfloat16."""
    folder.mkdir()
    values = [struct.unpack("<I", struct.pack("<f", float(at)))[0] >> 16 for at in range(18)]
    entry = {"dtype": dtype, "shape": [3, 6], "data_offsets": [4, 40]}
    text = json.dumps({"model.embed_tokens.weight": entry}).encode()
    data = b"\0" * 4 + struct.pack("<18H", *values)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"vocab_size": 3, "bos_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text(name)
    return folder


def test_a_student_has_columns_of_its_teachers_embeddings(tmp_path):
    model = example(LEARNING / "model.py")
    found = struct.unpack("<6f", model.thinned(teacher(tmp_path / "t"), 2))
    assert found == (0.0, 3.0, 6.0, 9.0, 12.0, 15.0)


def test_what_a_students_layers_add_begins_as_zero(tmp_path):
    model = example(LEARNING / "model.py")
    table = model.shapes(model.SIZES | {"hidden": 2, "layers": 1, "heads": 1, "kv_heads": 1}, 3)
    given = model.student(table, teacher(tmp_path / "t"))
    assert given.keys() == {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
    }
    assert given["model.layers.0.self_attn.o_proj.weight"] == bytes(4 * 2 * 2)


def test_a_student_has_its_teachers_words(tmp_path):
    sizes = {"hidden": 2, "intermediate": 4, "layers": 1, "heads": 1, "kv_heads": 1}
    out = ran(tmp_path, "model.py", sizes, tokens=teacher(tmp_path / "t"))
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == 3
    assert config["eos_token_id"] == 1
    assert "pad_token_id" not in config
    assert (out / "tokenizer.json").read_text() == "tokenizer.json"


@pytest.mark.parametrize(("hidden", "dtype"), [(4, "BF16"), (2, "F32")])
def test_columns_that_cannot_be_taken_are_refused(tmp_path, hidden, dtype):
    model = example(LEARNING / "model.py")
    with pytest.raises(ValueError, match="columns"):
        model.thinned(teacher(tmp_path / "t", dtype=dtype), hidden)


LEXICON = (
    "happy\t2.7\t0.9\t[2, 2, 2, 3, 2, 4, 4, 3, 2, 3]",
    "happiness\t2.6\t0.5\t[3, 3, 2, 3, 2, 3, 3, 2, 2, -3]",
    "dull\t-1.7\t1.0\t[-1, -2, -2, 1, -3, -2, -2, -2, -1, -3]",
    "dull\t1.0\t0.0\t[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]",
    "odd\t0.0\t1.0\t[1, -1, 1, -1, 1, -1, 1, -1, 1, -1]",
    ":-)\t1.3\t0.5\t[1, 1, 1, 1, 2, 2, 1, 2, 1, 1]",
)


def voted(tmp_path, per_sort):
    (tmp_path / "lexicon").mkdir()
    (tmp_path / "lexicon" / "words.txt").write_text("\n".join(LEXICON) + "\n")
    out = ran(tmp_path, "votes.py", {"per_sort": per_sort}, source=tmp_path / "lexicon")
    return {row["text"]: row for row in rows_of(out)}


def test_the_majority_of_the_votes_decides_and_a_tie_is_left_out(tmp_path):
    rows = voted(tmp_path, 9)
    assert rows.keys() == {"happy", "happiness", "dull"}
    better = {"better": "good", "worse": "bad"}
    assert rows["happiness"] == better | {"family": "happi", "margin": "8", "text": "happiness"}
    assert (rows["dull"]["better"], rows["dull"]["margin"]) == ("bad", "8")


def test_of_each_sort_there_are_as_many_words_at_most(tmp_path):
    assert sorted(row["better"] for row in voted(tmp_path, 1).values()) == ["bad", "good"]


def tabular(*codes):
    parts = "".join(
        f"<diag><name>{code}</name><desc>{text}</desc>"
        f"<inclusionTerm><note>{term}</note></inclusionTerm></diag>"
        for code, text, term in codes
    )
    return f"<list><chapter><name>13</name>{parts}</chapter></list>"


CODES = (
    ("M00.1", "Pain in the left knee", "Knee ache"),
    ("M00.2", "Pain in the right knee", "ache, knee"),
    ("M01.1", "Pain in right and left knee", "Ache of both knees, see M00"),
    ("M02.1", "Unspecified pain of a knee", "Unclear ache"),
)


def from_list(tmp_path, entry, folder, params):
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "list.xml").write_text(tabular(*CODES))
    script_folder = tmp_path / "script"
    script_folder.mkdir()
    (script_folder / entry).write_bytes((folder / entry).read_bytes())
    inputs = {"script": script_folder, "source": tmp_path / "xml"}
    return rows_of(run_step(script, tmp_path, inputs=inputs, params={"entry": entry, **params}).out)


def sided(tmp_path, **params):
    return from_list(tmp_path, "sides.py", LEARNING, {"kind": "sides", "per_side": 9, **params})


def test_a_description_says_one_side(tmp_path):
    assert {(row["cat"], row["side"]) for row in sided(tmp_path)} == {
        ("M00", "left"),
        ("M00", "right"),
        ("M02", "unspecified"),
    }


def test_a_site_has_rows_of_its_sides_alone(tmp_path):
    assert [row["side"] for row in sided(tmp_path, only="left bilateral")] == ["left"]


def test_wordings_are_descriptions_cut_in_two(tmp_path):
    params = {"kind": "wordings", "count": 9}
    rows = from_list(tmp_path, "sides.py", LEARNING, params)
    assert {"cat": "M00", "head": "Pain in", "tail": "the left knee"} in rows
    assert len(rows) == len({row["head"] for row in rows})


def test_terms_with_the_same_words_are_one_row_and_those_that_name_a_code_none(tmp_path):
    rows = from_list(tmp_path, "terms.py", LEARNING / "distillation", {})
    assert sorted(row["cat"] for row in rows) == ["M00", "M02"]
    assert {row["label"] for row in rows} == {"musculoskeletal"}


def test_terms_can_be_fewer(tmp_path):
    assert len(from_list(tmp_path, "terms.py", LEARNING / "distillation", {"count": 1})) == 1
