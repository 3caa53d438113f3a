"""The scripts of examples/learning: the same rows and weights everywhere, by integers alone."""

import hashlib
import json
import struct
import unicodedata

from kolm_build.core import cbor
from kolm_build.steps import import_model, script
from tests.steps_data.calling import run_step
from tests.support.models import ROOT, example

LEARNING = ROOT / "examples" / "learning"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_of(out):
    return [json.loads(line) for line in (out / "rows.jsonl").read_text("utf-8").splitlines()]


def ran(tmp_path, entry, params, *, place=LEARNING, **inputs):
    """What a script of the examples makes, run as the step runs it."""
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / entry).write_bytes((place / entry).read_bytes())
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
    params, source = {"per_sort": per_sort}, tmp_path / "lexicon"
    out = ran(tmp_path, "votes.py", params, place=LEARNING / "preference", source=source)
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


def from_list(tmp_path, params):
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "list.xml").write_text(tabular(*CODES))
    return rows_of(ran(tmp_path, "sides.py", params, source=tmp_path / "xml"))


def sided(tmp_path, **params):
    return from_list(tmp_path, {"kind": "sides", "per_side": 9, **params})


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
    rows = from_list(tmp_path, params)
    assert {"cat": "M00", "head": "Pain in", "tail": "the left knee"} in rows
    assert len(rows) == len({row["head"] for row in rows})


def test_what_the_student_is_told_is_what_the_log_of_the_calls_says():
    """DATA-11: each call's id is that of the row that was asked about."""
    folder = LEARNING / "distillation"
    said, calls = (
        [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("said.jsonl", "calls.jsonl")
    )
    assert [one["said"] for one in said] == [one["label_output"] for one in calls]
    for one, call in zip(said, calls, strict=True):
        asked = f"Diagnosis: {one['text']}\nICD-10-CM chapter (one word)?"
        row = {
            "answer": call["answer"],
            "group": one["cat"],
            "messages": [
                {"content": "You are a medical coding assistant.", "role": "system"},
                {"content": unicodedata.normalize("NFC", asked), "role": "user"},
            ],
        }
        assert call["id"] == f"sha256:{hashlib.sha256(cbor.encode(row)).hexdigest()}"
    right = sum(one["said"] == call["answer"] for one, call in zip(said, calls, strict=True))
    assert len(said) // 2 < right < len(said)
