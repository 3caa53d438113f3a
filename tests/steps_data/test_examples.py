import hashlib
import json
from collections import Counter

from kolm_build.core.recipe import parse_recipe
from kolm_build.steps import dataset, import_model, script
from tests.steps_data.calling import run_step
from tests.support.models import ROOT, TINY, example

ICD = ROOT / "examples" / "icd-triage"


def made(tmp_path, folder, entry, **inputs):
    inputs |= {"script": folder}
    return run_step(script, tmp_path, inputs=inputs, params={"entry": entry}).out


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_tiny_model_has_the_same_bytes_everywhere(tmp_path):
    out = made(tmp_path, TINY, "model.py")
    assert sha256(out / "model.safetensors") == (
        "6cb6cd6b666cbf8123ffb3948eedc50195ec320498105afb2c3ab357063a8be0"
    )
    assert sha256(out / "tokenizer.json") == (
        "dbf463c55eea8f88cb42c87d697060b64f69813b20e71ac31b466ff470eacab8"
    )
    assert run_step(import_model, tmp_path, inputs={"source": out}).status == 0


def test_the_tiny_rows_make_a_dataset_without_leaks(tmp_path):
    out = made(tmp_path, TINY, "rows.py")
    assert sha256(out / "rows.jsonl") == (
        "ba1bd9bfb91d85864305239ce1f90a50af9050cc3a1e906446d3f279d2e5208c"
    )
    params = {"prompt": "{text}. Ward?", "answer": "{ward}", "split_seed": "tiny"}
    outputs = ("train", "holdout", "compared", "report")
    done = run_step(dataset, tmp_path, inputs={"rows": out}, params=params, outputs=outputs)
    report = json.loads((done.outputs["report"] / "report.json").read_bytes())
    assert report["source"]["rows"] == 128
    assert set(report["holdout"]["answers"]) == {"bone", "lung", "mind", "skin"}


def tabular(chapters):
    """A tabular list: chapter number to code to inclusion terms."""
    parts = []
    for number, codes in chapters.items():
        diagnoses = "".join(
            f"<diag><name>{code}</name><desc>d</desc><inclusionTerm>"
            + "".join(f"<note>{term}</note>" for term in terms)
            + "</inclusionTerm></diag>"
            for code, terms in codes.items()
        )
        parts.append(f"<chapter><name>{number}</name><section>{diagnoses}</section></chapter>")
    return f"<ICD10CM.tabular>{''.join(parts)}</ICD10CM.tabular>"


def icd_rows(tmp_path, chapters):
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "list.xml").write_text(tabular(chapters), "utf-8")
    out = made(tmp_path, ICD, "rows.py", source=tmp_path / "xml")
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_a_diagnosis_goes_to_its_chapter_and_category(tmp_path):
    rows = icd_rows(tmp_path, {2: {"C46.1": ["Kaposi's  sarcoma"]}, 19: {"S00": ["Black eye"]}})
    assert rows == [
        {"cat": "C46", "code": "C46.1", "label": "neoplasm", "text": "Kaposi's sarcoma"}
    ]


def test_terms_that_cannot_stand_alone_or_are_there_twice_are_left_out(tmp_path):
    terms = ["Conditions in A00-B99", "x", "y" * 91, "Boil of face", "FACE, boil of"]
    (row,) = icd_rows(tmp_path, {12: {"L02.0": terms}})
    assert sorted(row["text"].casefold().replace(",", "").split()) == ["boil", "face", "of"]


def test_no_category_and_no_chapter_has_more_than_its_share(tmp_path):
    icd = example(ICD / "rows.py")
    chapters = {
        number: {
            f"{letter}{index:02}": [f"{letter} term {index} {at}" for at in range(9)]
            for index in range(40)
        }
        for number, letter in ((11, "K"), (14, "N"))
    }
    rows = icd_rows(tmp_path, chapters)
    assert Counter(row["label"] for row in rows) == {"digestive": 100, "genitourinary": 100}
    assert max(Counter(row["cat"] for row in rows).values()) == icd.PER_CATEGORY


MIXTURE = ROOT / "examples" / "learning" / "mixture"


TABLE = """<x><chapter><name>19</name><section>
<diag><name>S52</name><desc>Fracture of forearm</desc>
<diag><name>S52.1</name><desc>Fracture of upper end of right radius</desc></diag>
<diag><name>S52.2</name><desc>Fracture of left radius, unspecified</desc></diag>
<diag><name>S52.3</name><desc>Fracture of unspecified radius</desc></diag>
</diag></section></chapter><chapter><name>21</name>
<diag><name>Z00</name><desc>Examination of the left eye</desc></diag></chapter></x>"""


def asked(tmp_path, **params):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "icd.xml").write_text(TABLE)
    inputs = {"script": MIXTURE, "source": tmp_path / "source"}
    given = {"entry": "tasks.py", "count": 9, **params}
    out = run_step(script, tmp_path, inputs=inputs, params=given).out
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


RIGHT, LEFT = "Fracture of upper end of right radius", "Examination of the left eye"
NEITHER = "Fracture of unspecified radius"


def test_a_description_is_asked_about_once_for_each_answer(tmp_path):
    """A wording that names two sides, or none, is not asked about."""
    rows = asked(tmp_path, kind="asked")
    yes = {(row["question"], row["text"]) for row in rows if row["answer"] == "yes"}
    assert yes == {("right", RIGHT), ("left", LEFT), ("unspecified", NEITHER)}
    no = [row for row in rows if row["answer"] == "no"]
    assert sorted(row["text"] for row in no) == sorted((RIGHT, LEFT, NEITHER))
    assert not yes & {(row["question"], row["text"]) for row in no}


def test_a_set_of_one_question_is_a_part_of_all(tmp_path):
    rows = asked(tmp_path, kind="asked", question="right")
    assert {row["question"] for row in rows} == {"right"}
    assert {row["text"] for row in rows if row["answer"] == "yes"} == {RIGHT}


def test_what_the_base_learns_asks_none_of_the_three_questions(tmp_path):
    """Sides in a word, and chapters."""
    rows = asked(tmp_path, kind="learnt")
    sides = {row["text"]: row["answer"] for row in rows if row["question"] == "side"}
    assert sides == {RIGHT: "right", LEFT: "left", NEITHER: "unspecified"}
    others = [row for row in rows if row["question"] != "side"]
    assert len(others) == 4
    assert {row["cat"] for row in others} == {"S52"}
    chapters = {*example(MIXTURE / "tasks.py").CHAPTERS.values(), "chapter"}
    assert {row["question"] for row in others} <= chapters


def test_the_peer_of_a_mixture_has_as_many_numbers_steps_and_rows_a_step():
    """Three adapters of rank 2 and their gate, against one of rank 8: 963 numbers and 1,024."""
    recipe = parse_recipe((MIXTURE / "kolm.toml").read_text(), file="kolm.toml")
    *parts, one, gate = (dict(stage.params) for stage in recipe.pipeline.train[1:])
    size = 2 * example(MIXTURE / "model.py").HIDDEN
    numbers = sum(part["lora_r"] * size for part in parts) + len(parts) * (size // 2 + 1)
    assert numbers == 963
    assert one["lora_r"] * size == 1024
    assert sum(part["max_steps"] for part in (*parts, gate)) == one["max_steps"]
    assert len({part["batch_size"] for part in (*parts, one, gate)}) == 1
    assert {part["target_modules"] for part in (*parts, one)} == {"o_proj"}


def test_the_mixtures_model_has_a_token_for_every_question(tmp_path):
    out = made(tmp_path, MIXTURE, "model.py")
    assert sha256(out / "model.safetensors") == (
        "7ce959b1bc6d26ba14abb4f9d671543b8699f92715e26bf80cf1dbc29b5b31cd"
    )
    assert run_step(import_model, tmp_path, inputs={"source": out}).status == 0
    words = json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]
    tasks = example(MIXTURE / "tasks.py")
    asked_for = ("side", "chapter", *tasks.SIDES, *tasks.CHAPTERS.values())
    assert all(f"{word}?" in words for word in asked_for)
    assert all(word in words for word in (*tasks.SIDES, *tasks.CHAPTERS.values(), "yes", "no"))
