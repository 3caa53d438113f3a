"""spec/dataset.md: what a row of each schema becomes, and what is refused."""

import json

import pytest

from kolm_build.core.fields import Fields
from kolm_build.core.schemas import SCHEMAS
from kolm_build.steps._conversations import (
    read_conversations,
    read_feedback,
    read_pairs,
    read_prompts,
    read_rationales,
    read_steps,
    read_texts,
)
from kolm_build.steps._schemas import SHAPES
from tests.steps_data.test_dataset import distinct, is_held_out, lines, ran, report

READERS = {
    "answers": read_conversations,
    "texts": read_texts,
    "pairs": read_pairs,
    "feedback": read_feedback,
    "prompts": read_prompts,
    "steps": read_steps,
    "rationales": read_rationales,
}
KEYS = {
    "answers": {"prompt": "Q: {text}", "answer": "{label}"},
    "texts": {"text": "{text}."},
    "pairs": {"prompt": "Q: {text}", "chosen": "{yes}", "rejected": "{no}", "margin": "{by}"},
    "feedback": {"prompt": "Q: {text}", "answer": "{yes}", "good": "{up}", "weight": "{by}"},
    "prompts": {"prompt": "Q: {text}", "reference": "{yes}", "fields": "by\nkind"},
    "steps": {"prompt": "Q: {text}", "steps": "work", "labels": "right"},
    "rationales": {"prompt": "Q: {text}", "answer": "{yes}", "rationale": "{why}"},
}
MORE = {
    "yes": "left",
    "no": "rïght",
    "up": True,
    "by": "1e0",
    "kind": 7,
    "why": "it says so",
    "work": ["a, b", "c"],
    "right": [True, False],
}
LINES = {
    "answers": {"answer": "a"},
    "texts": {},
    "pairs": {"chosen": "left", "rejected": "rïght", "margin": "1"},
    "feedback": {"answer": "left", "good": True, "weight": "1"},
    "prompts": {"reference": "left", "fields": {"by": "1e0", "kind": "7"}},
    "steps": {"steps": ["a, b", "c"], "labels": [True, False]},
    "rationales": {"answer": "left", "rationale": "it says so"},
}


def made(tmp_path, of, rows=None, **changes):
    rows = distinct(30, **MORE) if rows is None else rows
    base = {"prompt": None, "answer": None, "schema": of}
    return ran(tmp_path, rows, **(base | KEYS[of] | changes))


@pytest.mark.parametrize("schema", SHAPES)
def test_a_line_holds_what_its_schema_says(tmp_path, schema):
    """DATA-10, DATA-16."""
    rows = distinct(30, **MORE)
    done = made(tmp_path, schema, rows)
    (first, *_) = lines(done, "train")
    text = next(row["text"] for row in rows if row["text"] in json.dumps(first))
    turns = [{"role": "user", "content": f"Q: {text}"}]
    own = {"text": f"{text}."} if schema == "texts" else LINES[schema]
    if schema == "answers":
        own = {"answer": next(row["label"] for row in rows if row["text"] == text)}
    common = {"group": "", "id": first["id"], "messages": [] if schema == "texts" else turns}
    assert first == common | own
    for side in ("train", "holdout"):
        read = READERS[schema](done.outputs[side] / f"{side}.jsonl")
        assert len(read) == report(done)[side]["rows"]
    assert report(done)["schema"] == schema


@pytest.mark.parametrize("schema", SHAPES)
def test_each_schema_keeps_families_on_one_side(tmp_path, schema):
    """DATA-9."""
    rows = [row | {"family": f"f{index % 9}"} for index, row in enumerate(distinct(45, **MORE))]
    done = made(tmp_path, schema, rows, group="family")
    for side in ("train", "holdout"):
        groups = {row["group"] for row in lines(done, side)}
        assert all(is_held_out(group) == (side == "holdout") for group in groups)


@pytest.mark.parametrize("schema", ["pairs", "feedback", "prompts", "steps", "rationales"])
def test_a_system_message_stands_before_the_prompt(tmp_path, schema):
    """DATA-10."""
    (first, *_) = lines(made(tmp_path, schema, system="Be brief."), "train")
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}
    assert first["messages"][1]["role"] == "user"


def test_what_is_optional_may_be_left_out(tmp_path):
    """DATA-10."""
    (pair, *_) = lines(made(tmp_path, "pairs", margin=None), "train")
    (vote, *_) = lines(made(tmp_path, "feedback", weight=None), "train")
    (asked, *_) = lines(made(tmp_path, "prompts", reference=None, fields=None), "train")
    assert (pair["margin"], vote["weight"]) == ("", "1")
    assert (asked["reference"], asked["fields"]) == ("", {})


@pytest.mark.parametrize("schema", SHAPES)
def test_the_formats_give_the_same_bytes(tmp_path, schema):
    """DATA-1, DATA-18."""
    import csv
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = distinct(30, **MORE)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    told = {
        (done.outputs["train"] / "train.jsonl").read_bytes()
        for done in (
            made(tmp_path, schema, rows),
            made(tmp_path, schema, text.getvalue(), name="rows.csv"),
            made(tmp_path, schema, (tmp_path / "t").read_bytes(), name="rows.parquet"),
        )
    }
    assert len(told) == 1


@pytest.mark.parametrize(
    ("schema", "change", "where", "reason"),
    [
        ("texts", {"text": " "}, "row 31", "an empty text"),
        ("pairs", {"text": ""}, "row 31", "an empty prompt"),
        ("pairs", {"yes": ""}, "row 31", "an empty chosen answer"),
        ("pairs", {"no": "\t"}, "row 31", "an empty rejected answer"),
        ("pairs", {"no": "left"}, "row 31, rejected", "a pair of equal sides"),
        ("pairs", {"yes": "ri\u0308ght"}, "row 31, rejected", "a pair of equal sides"),
        ("pairs", {"by": "wide"}, "row 31, margin", "not a decimal number"),
        ("pairs", {"by": "-0.5"}, "row 31, margin", "a negative number"),
        ("pairs", {"by": None}, "row 31, column 'by'", "a value that is not text"),
        ("feedback", {"yes": ""}, "row 31", "an empty answer"),
        ("feedback", {"up": "yes"}, "row 31, good", "neither true nor false"),
        ("feedback", {"up": 1}, "row 31, good", "neither true nor false"),
        ("feedback", {"up": ""}, "row 31, good", "neither true nor false"),
        ("feedback", {"by": "0"}, "row 31, weight", "a weight that is not above 0"),
        ("feedback", {"by": ""}, "row 31, weight", "a weight that is not above 0"),
        ("feedback", {"by": "-1"}, "row 31, weight", "a negative number"),
        ("feedback", {"by": "NaN"}, "row 31, weight", "not a decimal number"),
        ("prompts", {"text": ""}, "row 31", "an empty prompt"),
        ("prompts", {"kind": ["a"]}, "row 31, column 'kind'", "a value that is not text"),
        ("steps", {"work": "one"}, "row 31, column 'work'", "a value that is not a list"),
        ("steps", {"work": []}, "row 31, column 'work'", "no steps"),
        ("steps", {"work": ["a", " "]}, "row 31, column 'work'", "step 2 is empty"),
        ("steps", {"work": ["a", ["b"]]}, "row 31, column 'work'", "a value that is not text"),
        ("steps", {"right": [True]}, "row 31, column 'right'", "not one label for each step"),
        ("steps", {"right": [True, 1]}, "row 31, column 'right'", "neither true nor false"),
        ("steps", {"right": {"a": True}}, "row 31, column 'right'", "a value that is not a list"),
        ("rationales", {"yes": " "}, "row 31", "an empty answer"),
        ("rationales", {"why": ""}, "row 31", "an empty rationale"),
        ("rationales", {"why": ["a"]}, "row 31, column 'why'", "a value that is not text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_field(tmp_path, schema, change, where, reason):
    """DATA-5, DATA-17."""
    bad = {"text": "quite new", "label": "a", **MORE, **change}
    refusal = made(tmp_path, schema, [*distinct(30, **MORE), bad]).refusal
    assert (refusal["code"], refusal["file"]) == ("input.data", "rows.jsonl")
    assert refusal["where"] == where
    assert reason in refusal["reason"]


@pytest.mark.parametrize(
    ("schema", "change", "reason"),
    [
        ("texts", {}, "a duplicate row"),
        ("pairs", {}, "a duplicate row"),
        ("pairs", {"yes": "rïght", "no": "left"}, "two votes on one pair"),
        ("pairs", {"by": "2"}, "two votes on one pair"),
        ("pairs", {"no": "other"}, None),
        ("feedback", {}, "a duplicate row"),
        ("feedback", {"up": False}, "two votes on one answer"),
        ("feedback", {"by": "2"}, "two votes on one answer"),
        ("feedback", {"yes": "other"}, None),
        ("prompts", {}, "a duplicate row"),
        ("prompts", {"yes": "other"}, "two references for one prompt"),
        ("prompts", {"kind": 8}, "two references for one prompt"),
        ("steps", {}, "a duplicate row"),
        ("steps", {"right": [True, True]}, "two judgements of one answer"),
        ("steps", {"work": ["a", "c"]}, None),
        ("rationales", {}, "a duplicate row"),
        ("rationales", {"why": "no reason"}, "two answers to one prompt"),
        ("rationales", {"yes": "other"}, "two answers to one prompt"),
    ],
)
def test_one_thing_is_said_of_a_subject_once(tmp_path, schema, change, reason):
    """DATA-6, DATA-7."""
    rows = distinct(30, **MORE)
    done = made(tmp_path, schema, [*rows, rows[4] | change])
    if reason is None:
        assert len(lines(done, "train")) + len(lines(done, "holdout")) == 31
        return
    assert (done.refusal["reason"], done.refusal["where"]) == (reason, "row 31")
    assert done.refusal["actual"].startswith("row 5 ")


def test_the_report_counts_votes_and_references(tmp_path):
    """DATA-15."""
    rows = [row | {"up": index % 3 == 0} for index, row in enumerate(distinct(30, **MORE))]
    train = lines(made(tmp_path, "feedback", rows), "train")
    good = sum(row["good"] for row in train)
    told = report(made(tmp_path, "feedback", rows))["train"]
    assert told["answers"] == {"true": good, "false": len(train) - good}
    assert report(made(tmp_path, "prompts"))["train"]["answers"] == {"left": len(train)}
    for schema in ("texts", "pairs", "steps"):
        told = report(made(tmp_path, schema))["train"]
        assert (told["distinct_answers"], told["answers"]) == (0, {})


@pytest.mark.parametrize(
    ("schema", "changes", "where"),
    [
        ("pairs", {"chosen": None}, "params.chosen"),
        ("pairs", {"chosen": "yes"}, "params.chosen"),
        ("pairs", {"margin": "{by"}, "params.margin"),
        ("pairs", {"answer": "{yes}"}, "params.answer"),
        ("texts", {"prompt": "{text}"}, "params.prompt"),
        ("steps", {"labels": None}, "params.labels"),
        ("feedback", {"schema": "votes"}, "params.schema"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path, schema, changes, where):
    """STEP-6."""
    refusal = made(tmp_path, schema, **changes).refusal
    assert (refusal["code"], refusal["where"]) == ("input.invalid", where)


def test_the_step_knows_the_keys_that_a_recipe_may_have():
    """DATA-16."""
    assert list(SHAPES) == list(SCHEMAS)
    for name, schema in SCHEMAS.items():
        keys = dict.fromkeys((*schema.templates, *schema.columns), "{a}") | dict(schema.optional)
        keys |= {"fields": ""} if schema.more else {}
        fields = Fields(keys)
        given = SHAPES[name].take(fields)
        fields.done()
        assert keys.keys() - {"fields"} <= {*given.__slots__}


class TestAgainst:
    """DATA-19, DATA-20: rows of a set against those that [data] holds out."""

    LONG = "patient reports chest pain after climbing stairs and some shortness of breath at night"

    @pytest.fixture
    def compared(self, tmp_path):
        """What [data] holds out: `LONG` too, under another template."""
        wanted = next(f"{self.LONG} {n}" for n in range(99) if is_held_out(f"Say {self.LONG} {n}"))
        rows = [*distinct(30), {"text": wanted, "label": "a"}]
        done = ran(tmp_path, rows, prompt="Say {text}")
        assert any(wanted in row["messages"][0]["content"] for row in lines(done, "holdout"))
        return wanted, done

    def against(self, tmp_path, done, rows, **changes):
        base = {"prompt": None, "answer": None, "schema": "pairs"} | KEYS["pairs"]
        return ran(tmp_path, rows, against=done.outputs["compared"], **(base | changes))

    def row(self, text):
        """A row about `text` that is on the training side."""
        return {"text": text, "label": "a", **MORE, "side": "x3"}

    def rows(self, *texts):
        groups = {want: next(f"x{n}" for n in range(99) if is_held_out(f"x{n}") == want)
                  for want in (True, False)}  # fmt: skip
        others = [row | {"text": row["text"][::-1]} for row in distinct(12, **MORE)]
        found = [self.row(text) for text in texts] + others
        return [row | {"side": groups[False]} for row in found]

    def test_what_is_compared_stands_beside_the_rows(self, compared):
        wanted, done = compared
        text = (done.outputs["compared"] / "compared.jsonl").read_bytes()
        found = [json.loads(line) for line in text.splitlines()]
        assert text == b"".join(
            json.dumps(one, sort_keys=True, separators=(",", ":")).encode() + b"\n" for one in found
        )
        held = lines(done, "holdout")
        assert [one["id"] for one in found] == [row["id"] for row in held]
        prompts = [row["messages"][0]["content"] for row in held]
        assert [f"Say {one['content']}" for one in found] == prompts
        assert wanted in [one["content"] for one in found]

    @pytest.mark.parametrize(
        ("like", "kind"),
        [
            (str, "an exact duplicate"),
            (str.upper, "equal but for case, spaces and punctuation"),
            (lambda text: text + "s", "a near duplicate"),
        ],
    )
    def test_a_row_about_a_held_out_prompt_is_a_leak(self, tmp_path, compared, like, kind):
        wanted, done = compared
        refusal = self.against(
            tmp_path, done, self.rows("fine", like(wanted)), group="side"
        ).refusal
        assert refusal["reason"] == f"a training row is held out too: {kind}"
        assert refusal["where"] == "row 2"
        assert "of [data]" in refusal["actual"]

    def test_it_is_dropped_where_leaks_are_and_the_report_says_so(self, tmp_path, compared):
        wanted, done = compared
        rows = self.rows("fine", wanted)
        found = self.against(tmp_path, done, rows, group="side", leakage="drop")
        assert wanted not in json.dumps(lines(found, "train"))
        (dropped,) = report(found)["dropped"]
        (held,) = [row for row in lines(done, "holdout") if wanted in json.dumps(row)]
        assert (dropped["row"], dropped["like"], dropped["like_row"]) == (2, held["id"], None)

    def test_rows_of_its_own_are_fine_and_need_no_held_out_ones(self, tmp_path, compared):
        """DATA-8."""
        _, done = compared
        found = self.against(tmp_path, done, self.rows("fine"), group="side")
        assert (len(lines(found, "train")), lines(found, "holdout")) == (13, [])
        assert report(found)["holdout"]["rows"] == 0

    def test_a_text_like_a_held_out_prompt_is_a_leak_too(self, tmp_path, compared):
        wanted, done = compared
        keys = {"schema": "texts", "text": "{text}"}
        keys |= dict.fromkeys(("prompt", "chosen", "rejected", "margin"))
        found = self.against(tmp_path, done, self.rows(wanted + "!"), group="side", **keys)
        assert found.refusal["where"] == "row 1"

    def test_a_line_that_is_none_is_named(self, tmp_path, compared):
        _, done = compared
        (done.outputs["compared"] / "compared.jsonl").write_text('{"id": "x"}\n')
        refusal = self.against(tmp_path, done, self.rows("fine"), group="side").refusal
        assert (refusal["file"], refusal["where"]) == ("compared.jsonl", "row 1.content")
