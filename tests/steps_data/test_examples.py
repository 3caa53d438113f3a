import hashlib
import json
from collections import Counter
from math import prod

from kolm_build.core.attached import Routing
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


def test_three_questions_are_asked_about_real_descriptions(tmp_path):
    """A side stands in the wording; chapter and heading are the table's own."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "icd.xml").write_text(
        """<x><chapter><name>19</name>
        <section><diag><name>S52</name><desc>Fracture of forearm</desc>
        <diag><name>S52.1</name><desc>Fracture of upper end of right radius</desc></diag>
        <diag><name>S52.2</name><desc>Fracture of left radius, unspecified</desc></diag>
        </diag></section></chapter><chapter><name>21</name>
        <diag><name>Z00</name><desc>Examination of the left eye</desc></diag></chapter></x>"""
    )
    out = made(tmp_path, MIXTURE, "tasks.py", source=source)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    told = {(row["question"], row["text"]): row["answer"] for row in rows}
    right, both = "Fracture of upper end of right radius", "Fracture of left radius, unspecified"
    assert told == {
        ("side", right): "right",
        ("side", "Examination of the left eye"): "left",
        ("chapter", "Fracture of forearm"): "injury",
        ("chapter", right): "injury",
        ("chapter", both): "injury",
        ("billable", "Fracture of forearm"): "no",
        ("billable", right): "yes",
        ("billable", both): "yes",
        ("billable", "Examination of the left eye"): "yes",
    }
    assert {row["cat"] for row in rows} == {"S52", "Z00"}


def test_the_mixture_and_its_peer_train_equally_many_numbers():
    """Four experts of rank 4 with their routers, and one adapter of rank 18: 36,864 each."""
    recipe = parse_recipe((MIXTURE / "kolm.toml").read_text(), file="kolm.toml")
    one, mixture = (dict(stage.params) for stage in recipe.pipeline.train[1:])
    shapes = example(MIXTURE / "model.py").shapes()
    layers = [shape for name, shape in shapes.items() if len(shape) == 2 and "layers" in name]
    peer = sum(one["lora_r"] * (rows + columns) for rows, columns in layers)
    routing = Routing(
        experts=mixture["experts"],
        top_k=mixture["top_k"],
        routing="top",
        rank=mixture["lora_r"],
        alpha=mixture["lora_alpha"],
    )
    matrices = [routing.shapes(columns, rows).values() for rows, columns in layers]
    assert sum(prod(shape) for shapes_of in matrices for shape in shapes_of) == peer == 36_864
    alike = ("learning_rate", "epochs", "batch_size", "warmup_steps", "schedule", "target_modules")
    assert [one[name] for name in alike] == [mixture[name] for name in alike]
    assert one["lora_alpha"] * mixture["lora_r"] == mixture["lora_alpha"] * one["lora_r"]
