import hashlib
import json
import unicodedata

import cbor2
import pytest

from kolm_build.steps import dataset
from tests.steps_data.calling import run_step
from tests.support.models import tiny_rows

PARAMS = {"prompt": "Diagnosis: {text}?", "answer": "{label}", "split_seed": "kolm"}
OUTPUTS = ("train", "holdout", "compared", "report")


def ran(tmp_path, rows, *, name="rows.jsonl", against=None, call_log=None, **changes):
    """The step on `rows`: dicts for JSON lines, or the file's text or bytes."""
    folder = tmp_path / f"rows-{len(list(tmp_path.glob('rows-*')))}"
    folder.mkdir()
    if isinstance(rows, list):
        rows = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_bytes(rows.encode() if isinstance(rows, str) else rows)
    params = {key: value for key, value in (PARAMS | changes).items() if value is not None}
    more = {"against": against, "call_log": call_log}
    inputs = {"rows": folder} | {role: path for role, path in more.items() if path is not None}
    return run_step(dataset, tmp_path, inputs=inputs, params=params, outputs=OUTPUTS)


def lines(done, side):
    assert done.status == 0, done.events
    text = (done.outputs[side] / f"{side}.jsonl").read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def report(done):
    assert done.status == 0, done.events
    return json.loads((done.outputs["report"] / "report.json").read_bytes())


def distinct(count, **more):
    """Rows whose texts have nothing in common."""
    texts = (hashlib.sha256(str(index).encode()).hexdigest()[:20] for index in range(count))
    return [{"text": text, "label": "ab"[index % 2], **more} for index, text in enumerate(texts)]


def is_held_out(key, seed="kolm", modulus=5):
    """spec/split.md once more, with another CBOR."""
    digest = hashlib.sha256(cbor2.dumps(key) + seed.encode()).digest()
    return int.from_bytes(digest, "big") % modulus == 0


def test_every_row_is_on_the_side_that_its_own_key_says(tmp_path):
    """DATA-9."""
    done = ran(tmp_path, distinct(60))
    sides = {side: lines(done, side) for side in ("train", "holdout")}
    assert len(sides["train"]) + len(sides["holdout"]) == 60
    for side, rows in sides.items():
        for row in rows:
            assert is_held_out(row["messages"][-1]["content"]) == (side == "holdout")


def test_a_group_is_on_one_side(tmp_path):
    """DATA-9."""
    rows = [row | {"cat": f"c{index % 24}"} for index, row in enumerate(distinct(60))]
    done = ran(tmp_path, rows, group="cat")
    train, holdout = ({row["group"] for row in lines(done, side)} for side in OUTPUTS[:2])
    assert train | holdout == {f"c{index}" for index in range(24)}
    assert not train & holdout
    assert all(is_held_out(group) for group in holdout)


def test_a_row_does_not_move_when_others_are_added(tmp_path):
    few, many = (lines(ran(tmp_path, distinct(count)), "holdout") for count in (30, 60))
    assert few == many[: len(few)]


def test_a_line_is_canonical_json_with_the_digest_of_its_row(tmp_path):
    """DATA-10, DATA-11."""
    done = ran(tmp_path, distinct(20), system="Be brief.")
    (first, *_) = (done.outputs["train"] / "train.jsonl").read_bytes().splitlines()
    row = json.loads(first)
    assert first == json.dumps(row, sort_keys=True, separators=(",", ":")).encode()
    assert list(row) == ["answer", "group", "id", "messages"]
    assert row["messages"][0] == {"content": "Be brief.", "role": "system"}
    hashed = {key: row[key] for key in ("answer", "group", "messages")}
    encoded = cbor2.dumps(hashed, canonical=True)
    assert row["id"] == "sha256:" + hashlib.sha256(encoded).hexdigest()


def test_the_report_counts_the_rows_and_names_them_by_one_root(tmp_path):
    """DATA-14, DATA-15."""
    done = ran(tmp_path, distinct(40))
    told, rows = report(done), lines(done, "holdout")
    assert set(told) == {*("format", "schema", "source", "split", "dropped", "train", "holdout")}
    answers = [row["answer"] for row in rows]
    assert told["source"] == {"file": "rows.jsonl", "rows": 40}
    assert told["holdout"]["rows"] == len(rows)
    assert told["holdout"]["answers"] == {word: answers.count(word) for word in set(answers)}
    leaves = (done.outputs["holdout"] / "holdout.jsonl").read_bytes().splitlines()
    assert told["holdout"]["root"] == "sha256:" + merkle(leaves).hex()


def merkle(leaves):
    """RFC 6962, section 2.1, by its own recursion."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    pair = merkle(leaves[:half]) + merkle(leaves[half:])
    return hashlib.sha256(b"\1" + pair).digest()


def test_many_distinct_answers_are_counted_and_not_listed(tmp_path):
    rows = [row | {"label": row["text"]} for row in distinct(400)]
    told = report(ran(tmp_path, rows, prompt="Say {text}"))
    assert told["train"]["answers"] is None
    assert told["train"]["distinct_answers"] == told["train"]["rows"]


def test_the_three_formats_give_the_same_bytes(tmp_path):
    """DATA-1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row | {"age": index} for index, row in enumerate(distinct(30))]
    table = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    text = "text,label,age\r\n" + "".join(
        f'"{r["text"]}",{r["label"]},{r["age"]}\r\n' for r in rows
    )
    told = {
        (done.outputs["train"] / "train.jsonl").read_bytes()
        for done in (
            ran(tmp_path, rows, prompt="{text} at {age}"),
            ran(tmp_path, text, name="rows.csv", prompt="{text} at {age}"),
            ran(tmp_path, table.read_bytes(), name="r.parquet", prompt="{text} at {age}"),
        )
    }
    assert len(told) == 1


def test_csv_fields_may_hold_line_breaks_of_any_kind(tmp_path):
    rows = distinct(20)
    text = "text,label\n" + "".join(f'"{r["text"]}\n\u2028 x",{r["label"]}\n' for r in rows)
    assert (
        "\n\u2028 x"
        in lines(ran(tmp_path, text, name="rows.csv"), "train")[0]["messages"][0]["content"]
    )


def test_numbers_keep_the_digits_of_the_file(tmp_path):
    """DATA-3."""
    rows = distinct(20)
    text = "".join(f'{{"text": "{r["text"]}", "label": 0.10}}\n' for r in rows)
    assert lines(ran(tmp_path, text), "train")[0]["answer"] == "0.10"


def test_text_is_put_in_nfc(tmp_path):
    """DATA-4."""
    rows = [row | {"text": f"cafe\u0301 {row['text']}"} for row in distinct(20)]
    for row in lines(ran(tmp_path, rows), "train"):
        assert row["messages"][0]["content"].startswith("Diagnosis: caf\u00e9 ")
        assert unicodedata.is_normalized("NFC", row["messages"][0]["content"])


def test_doubled_braces_are_braces(tmp_path):
    done = ran(tmp_path, distinct(20), answer='{{"label": "{label}"}}')
    assert lines(done, "train")[0]["answer"] in ('{"label": "a"}', '{"label": "b"}')


@pytest.mark.parametrize(
    ("row", "reason", "where"),
    [
        ({"text": " ", "label": "a"}, "an empty prompt", "row 21"),
        ({"text": "new", "label": ""}, "an empty answer", "row 21"),
        ({"text": "new"}, "a row lacks a column", "row 21"),
        ({"text": "new", "label": None}, "a value that is not text", "row 21, column 'label'"),
        ({"text": "new", "label": ["a"]}, "a value that is not text", "row 21, column 'label'"),
        ({"text": "\ud800", "label": "a"}, "half of a surrogate pair", "row 21, column 'text'"),
        (distinct(20)[2], "a duplicate row", "row 21"),
        (distinct(20)[2] | {"label": "other"}, "two answers to one prompt", "row 21"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, reason, where):
    """DATA-5, DATA-6, DATA-7."""
    refusal = ran(tmp_path, [*distinct(20), row]).refusal
    assert refusal["code"] == "input.data"
    assert refusal["file"] == "rows.jsonl"
    assert refusal["where"] == where
    assert reason in refusal["reason"]


def test_an_empty_group_is_refused(tmp_path):
    rows = [*distinct(20, cat="x"), {"text": "new", "label": "a", "cat": ""}]
    assert ran(tmp_path, rows, group="cat").refusal["reason"] == "an empty group"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b'{"text": "a", "label": "b"}\n{"text": "\xff"}\n', "line 2, byte 11"),
        (b'\xef\xbb\xbf{"text": "a", "label": "b"}\n', "line 1"),
        (b'{"text": "a", "label": "b"}\n\n{"text": "c", "label": "d"}\n', "row 2"),
        (b'{"text": "a", "text": "b", "label": "c"}\n', "row 1"),
        (b'{"text": NaN, "label": "c"}\n', "row 1"),
        (b'{"text": "a", "label": "c"}\n{"text": "b", "la', "row 2"),
        (b'["a", "b"]\n', "row 1"),
        (b"[" * 100_000 + b"\n", "row 1"),
    ],
)
def test_a_line_that_is_not_json_is_named(tmp_path, text, where):
    """DATA-2."""
    refusal = ran(tmp_path, text).refusal
    assert (refusal["code"], refusal["file"], refusal["where"]) == (
        "input.data",
        "rows.jsonl",
        where,
    )


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("text,label\na,b,c\n", "row 1 (line 2)"),
        ("text,label\na,b\nc\n", "row 2 (line 3)"),
        ("text,text\na,b\n", "line 1"),
        ("", "line 1"),
        ('text,label\n"a,b\n', "line 2"),
        ('text,label\n"a"b,c\n', "line 2"),
    ],
)
def test_a_record_that_is_not_csv_is_named(tmp_path, text, where):
    """DATA-2."""
    refusal = ran(tmp_path, text, name="rows.csv").refusal
    assert (refusal["code"], refusal["where"]) == ("input.data", where)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_damaged_parquet_file_is_refused(tmp_path, data):
    """DATA-2."""
    refusal = ran(tmp_path, data, name="rows.parquet").refusal
    assert refusal["reason"] == "not a readable Parquet file"
    assert refusal["file"] == "rows.parquet"


def test_a_column_that_a_parquet_file_lacks_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "t")
    refusal = ran(tmp_path, (tmp_path / "t").read_bytes(), name="rows.parquet").refusal
    assert refusal["reason"] == "a row lacks a column"
    assert refusal["expected"] == "the column 'label'"


def test_an_empty_file_is_refused(tmp_path):
    assert ran(tmp_path, "").refusal["reason"] == "the file has no rows"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"prompt": "no column"}, "params.prompt"),
        ({"prompt": "{text"}, "params.prompt"),
        ({"answer": None}, "params.answer"),
        ({"leakage": "ignore"}, "params.leakage"),
        ({"format": "xlsx"}, "params.format"),
        ({"modulus": "5"}, "params.modulus"),
        ({"prompts": "{text}"}, "params.prompts"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path, changes, where):
    """STEP-6."""
    refusal = ran(tmp_path, distinct(20), **changes).refusal
    assert (refusal["code"], refusal["where"]) == ("input.invalid", where)


def test_a_modulus_out_of_range_is_refused(tmp_path):
    assert ran(tmp_path, distinct(20), modulus=1).refusal["where"] == "modulus"


def test_a_side_without_rows_is_refused(tmp_path):
    """DATA-8."""
    one_group = distinct(20, cat="only")
    refusal = ran(tmp_path, one_group, group="cat").refusal
    assert refusal["reason"].startswith("the split leaves no ")
    assert refusal["actual"] == "20 rows, 1 keys"


class TestLeaks:
    """DATA-12: a training row like a held-out row is refused, or dropped and counted."""

    LONG = "patient reports chest pain after climbing stairs and some shortness of breath at night"

    def rows(self, like):
        """Rows where `LONG` is held out and `like(LONG)` is a training row."""
        wanted = {"x": False, "y": True}
        groups = {
            want: next(
                f"{name}{index}" for index in range(99) if is_held_out(f"{name}{index}") == want
            )
            for name, want in wanted.items()
        }
        held = {"text": self.LONG, "label": "a", "cat": groups[True]}
        leaking = {"text": like(self.LONG), "label": "a", "cat": groups[False]}
        others = [row | {"cat": groups[index % 2 == 0]} for index, row in enumerate(distinct(20))]
        return [held, *others, leaking]

    @pytest.mark.parametrize(
        ("like", "kind"),
        [
            (lambda text: text.upper() + "!", "equal but for case, spaces and punctuation"),
            (lambda text: text.replace(" ", ",  "), "equal but for case, spaces and punctuation"),
            (lambda text: text + "s", "a near duplicate"),
            (lambda text: "A " + text, "a near duplicate"),
        ],
    )
    def test_a_leak_is_refused_naming_both_rows(self, tmp_path, like, kind):
        refusal = ran(tmp_path, self.rows(like), group="cat").refusal
        assert refusal["reason"] == f"a training row is held out too: {kind}"
        assert refusal["where"] == "row 22"
        assert "is like row 1" in refusal["actual"]

    def test_a_leak_is_dropped_from_training_and_counted(self, tmp_path):
        rows = self.rows(str.title)
        done = ran(tmp_path, rows, group="cat", leakage="drop")
        texts = [row["messages"][0]["content"] for row in lines(done, "train")]
        assert not any("Chest" in text for text in texts)
        assert [(leak["row"], leak["like_row"]) for leak in report(done)["dropped"]] == [(22, 1)]
        assert any("chest" in row["messages"][0]["content"] for row in lines(done, "holdout"))

    def test_the_words_of_the_template_make_no_leak(self, tmp_path):
        prompt = "A very long instruction that is the same in each and every row: {text}"
        assert ran(tmp_path, distinct(40), prompt=prompt).status == 0

    def test_a_row_of_its_own_is_no_leak(self, tmp_path):
        rows = self.rows(lambda text: text.replace("chest", "hip").replace("night", "noon"))
        assert ran(tmp_path, rows, group="cat").status == 0


def test_two_runs_give_the_same_bytes(tmp_path):
    rows = tiny_rows(tmp_path / "rows").read_text("utf-8")
    changes = {"prompt": "{text}. Ward?", "answer": "{ward}"}
    runs = [ran(tmp_path, rows, **changes) for _ in range(2)]
    for side, name in (("train", "train.jsonl"), ("report", "report.json")):
        first, second = ((done.outputs[side] / name).read_bytes() for done in runs)
        assert first == second


TEACHER = {
    "provenance_vendor": "Example Ltd",
    "provenance_model": "example-large-2",
    "provenance_date": "2026-03-31",
    "provenance_licence": "LicenseRef-example-terms",
}


def calls(tmp_path, **files):
    folder = tmp_path / f"calls-{len(list(tmp_path.glob('calls-*')))}"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_the_report_names_who_answered_and_the_log_of_the_calls(tmp_path):
    """DATA-62; nothing else of the output is another."""
    log = calls(tmp_path, second="to be read by people\n", first='{"asked": 1}\n')
    plain, done = ran(tmp_path, distinct(40)), ran(tmp_path, distinct(40), call_log=log, **TEACHER)
    told = report(done).pop("provenance")
    assert told == {
        **{name.removeprefix("provenance_"): value for name, value in TEACHER.items()},
        "call_log": [
            {
                "file": name,
                "sha256": f"sha256:{hashlib.sha256((log / name).read_bytes()).hexdigest()}",
                "size": (log / name).stat().st_size,
            }
            for name in ("first", "second")
        ],
    }
    assert report(plain) == {
        name: value for name, value in report(done).items() if name != "provenance"
    }
    assert lines(plain, "train") == lines(done, "train")


def test_a_teacher_without_a_log_and_a_log_without_a_teacher_are_refused(tmp_path):
    """DATA-60, DATA-62."""
    log = calls(tmp_path, log="{}")
    refusals = {
        "inputs.call_log": [
            ran(tmp_path, distinct(40), **TEACHER),
            ran(tmp_path, distinct(40), call_log=log),
            ran(tmp_path, distinct(40), call_log=calls(tmp_path), **TEACHER),
            ran(tmp_path, distinct(40), call_log=calls(tmp_path, log=""), **TEACHER),
        ],
        "params.provenance_date": [
            ran(tmp_path, distinct(40), call_log=log, **TEACHER | {"provenance_date": "2026-13-01"})
        ],
        "params.provenance_model": [
            ran(tmp_path, distinct(40), call_log=log, **TEACHER | {"provenance_model": None})
        ],
    }
    for where, found in refusals.items():
        for done in found:
            assert done.status != 0
            assert done.events[-1]["where"] == where
