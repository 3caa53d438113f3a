"""Evidence: a builder who lies is found out, though every digest is right (spec/verify.md).

Each case changes the tiny artifact and lists what is there now in its manifest, as somebody with
a builder's key could; the figures no longer follow from one another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.attest.verify import verify_artifact
from kolm_build.core import cbor, strict_json
from kolm_build.core.safetensors import encode_header
from kolm_build.errors import EvidenceError, VerificationError
from tests.artifact import making
from tests.attest.helping import Members, forge, members

RESULTS, SUMMARY = "eval/results.jsonl", "eval/summary.json"
KSCORE, GATE, HOLDOUT = "eval/kscore.json", "eval/gate.json", "eval/holdout.jsonl"


def nothing(_: object) -> None:
    """Change nothing."""


@pytest.fixture
def refused(unsigned: Path, tmp_path: Path):
    """Forge the artifact and give the error that verifying it ends with."""

    def run(change=nothing, claims=nothing) -> VerificationError:
        path = forge(unsigned, tmp_path / "forged.kolm", change, claims)
        with pytest.raises(EvidenceError) as caught:
            verify_artifact(path, trust=None)
        return caught.value

    return run


def edit(path: str, change: Callable[[dict], None]) -> Callable[[Members], None]:
    """A change of one JSON member."""

    def run(files: Members) -> None:
        value = json.loads(files[path])
        change(value)
        files[path] = strict_json.dumps(value)

    return run


def edit_line(path: str, number: int, change: Callable[[dict], None]) -> Callable[[Members], None]:
    """A change of one line of a JSON lines member."""

    def run(files: Members) -> None:
        values = [json.loads(line) for line in files[path].splitlines()]
        change(values[number])
        files[path] = making.lines(values)

    return run


def put(**values: object) -> Callable[[dict], None]:
    """Set keys."""
    return lambda table: table.update(values)


def test_the_forger_s_tools_leave_a_good_artifact_good(unsigned, tmp_path):
    path = forge(unsigned, tmp_path / "same.kolm")
    assert path.read_bytes() == unsigned.read_bytes()


def test_what_cannot_be_recomputed_is_said(unsigned):
    """VER-6."""
    report = verify_artifact(unsigned, trust=None)
    assert any("kolm rebuild" in text for text in report.not_evidenced)
    assert not set(report.evidenced) & set(report.not_evidenced)


@pytest.mark.parametrize(
    "claim",
    [
        {"numerics": "portable-1"},
        {"numerics": "exact-1"},
        {"licence": "MIT"},
        {"kscore": {"k": "1.0000"}},
        {"kscore": {}},
    ],
)
def test_a_claim_of_the_manifest_that_does_not_follow_is_refused(refused, claim):
    """EVI-3, EVI-7, ART-4."""
    assert refused(claims=put(**claim)).file == "manifest.json"


def test_another_k_in_the_manifest_is_refused(refused):
    """EVI-7; case 27 of the threat model."""

    def better(manifest):
        manifest["kscore"]["k"] = "0.9999"

    assert refused(claims=better).file == "manifest.json"


@pytest.mark.parametrize(
    "change",
    [
        {"correct": False},
        {"output": "warm"},
        {"label_output": "warm"},
        {"label_correct": None},
        {"label_output": None},
        {"verified": False},
        {"answer": "other"},
        {"correct": 1},
        {"prompt_tokens": 8},
        {"id": "sha256:" + "0" * 64},
        {"more": 1},
    ],
)
def test_a_result_that_does_not_follow_from_its_output_is_refused(refused, change):
    """EVI-5; case 27."""
    assert refused(edit_line(RESULTS, 0, put(**change))).file in {RESULTS, SUMMARY}


def test_a_better_story_about_the_base_is_refused(refused):
    """EVI-5, EVI-7."""
    assert refused(edit("eval/base-summary.json", put(correct=4))).file == "eval/base-summary.json"


@pytest.mark.parametrize(
    "name", ["rows", "correct", "label_correct", "verified", "prompt_tokens", "output_tokens"]
)
def test_a_total_that_is_not_the_sum_is_refused(refused, name):
    """EVI-5."""
    error = refused(edit(SUMMARY, lambda table: table.update({name: table[name] + 1})))
    assert (error.file, error.where) == (SUMMARY, name)


@pytest.mark.parametrize(
    "name", ["parameters", "weight_bytes", "flops_per_request", "bytes_per_request"]
)
def test_a_cost_that_is_not_the_model_s_is_refused(refused, name):
    """EVI-6: with a score that follows from the lie."""

    def cheaper(files: Members) -> None:
        edit(SUMMARY, lambda table: table.update({name: table[name] - 1}))(files)
        if name != "parameters":
            edit(
                KSCORE, lambda table: table["evidence"].update({name: table["evidence"][name] - 1})
            )(files)

    error = refused(cheaper)
    assert error.where in {name, "latency_us", "cost_microusd"}


def test_a_removed_doubled_or_foreign_result_is_refused(refused):
    """EVI-5: one result a row."""

    def lines(files: Members) -> list[bytes]:
        return files[RESULTS].splitlines(keepends=True)

    def drop(files: Members) -> None:
        files[RESULTS] = b"".join(lines(files)[1:])

    def double(files: Members) -> None:
        files[RESULTS] = b"".join([*lines(files), lines(files)[0]])

    def replace(files: Members) -> None:
        files[RESULTS] = b"".join([*lines(files)[1:], lines(files)[1]])

    for change in (drop, double, replace):
        assert refused(change).file == RESULTS


def test_easy_rows_only_are_refused(refused):
    """EVI-5: leaving out a row and its result still changes the counts."""

    def easier(files: Members) -> None:
        for path in (HOLDOUT, RESULTS, "eval/base-results.jsonl"):
            files[path] = b"".join(files[path].splitlines(keepends=True)[:-1])

    assert refused(easier).where in {"rows", "label_correct", "correct"}


def test_a_row_with_another_id_is_refused(refused):
    """EVI-4."""
    assert "line 1" in str(refused(edit_line(HOLDOUT, 0, put(answer="warm"))).where)


def test_a_row_twice_is_refused(refused):
    """EVI-4."""

    def twice(files: Members) -> None:
        files[HOLDOUT] += files[HOLDOUT].splitlines(keepends=True)[0]

    assert refused(twice).reason == "a row is there twice"


def training_row(files: Members) -> None:
    """Put a row of the training side among the held-out ones, with its result."""
    number = next(number for number in range(100) if not making.is_held_out(number))
    row = making.row(number, "cold")
    files[HOLDOUT] += strict_json.dumps(row) + b"\n"
    for path, summary in (
        (RESULTS, SUMMARY),
        ("eval/base-results.jsonl", "eval/base-summary.json"),
    ):
        files[path] += strict_json.dumps(making.result(row, "cold")) + b"\n"
        results = [json.loads(line) for line in files[path].splitlines()]
        size = json.loads(files[SUMMARY])["weight_bytes"]
        files[summary] = strict_json.dumps(making.summary(results, size))


def test_a_training_row_among_the_held_out_ones_is_refused(refused):
    """EVI-4; case 29: by the split rule, whatever the counts say."""

    def rescored(files: Members) -> None:
        from kolm_build.core.kscore import Evidence, score

        training_row(files)
        evidence = json.loads(files[KSCORE])["evidence"]
        evidence |= {"rows": 5, "correct": 5, "verified": 5, "base_correct": 3}
        files[KSCORE] = strict_json.dumps(score(Evidence.from_value(evidence)).to_value())

    assert refused(rescored).reason == "a training row among the held-out rows"


@pytest.mark.parametrize("old", [b'"answer":"cold"', b'"group":""', b'{"answer"'])
def test_a_row_in_another_spelling_is_refused(refused, old):
    """EVI-4: canonical JSON lines."""

    def respell(files: Members) -> None:
        files[HOLDOUT] = files[HOLDOUT].replace(old, old.replace(b'"', b' "', 1), 1)

    assert refused(respell).reason == "not canonical JSON"


def test_a_cut_off_line_is_refused(refused):
    def cut(files: Members) -> None:
        files[RESULTS] = files[RESULTS][:-1]

    assert refused(cut).file == RESULTS


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (KSCORE, put(k="1.0001")),
        (KSCORE, put(format="kscore/2")),
        (KSCORE, put(base_accuracy="0.0000")),
        (GATE, put(passed=False)),
        (GATE, put(k_min="0.4")),
        (GATE, put(format="gate/2")),
        (GATE, put(shortfalls=[{}])),
        (SUMMARY, put(metric="label")),
        (SUMMARY, put(format="evaluation/2")),
        (SUMMARY, put(rows=True)),
    ],
)
def test_a_figure_that_does_not_follow_is_refused(refused, path, change):
    """EVI-5, EVI-7, EVI-8; case 27: also thresholds lowered after the run."""
    assert refused(edit(path, change)).file == path


def test_a_bigger_budget_than_the_derivation_s_is_refused(refused):
    """EVI-7; case 27."""

    def richer(files: Members) -> None:
        edit(KSCORE, lambda table: table["evidence"].update(size_budget_bytes=10**9))(files)

    assert refused(richer).where == "evidence.size_budget_bytes"


def remade(name: str, step: str, params: dict) -> Callable[[Members], None]:
    """Replace the derivation of `step` by one with other parameters, under its right name."""

    def run(files: Members) -> None:
        for path in [path for path in files if path.startswith("build/derivations/")]:
            record = cbor.decode(files[path])
            assert isinstance(record, dict)
            if record["step"] == step:
                del files[path]
        made = making.node(name, step, params, source=making.digest("base"))
        files[f"build/derivations/{made.digest.hex}.cbor"] = made.encode()

    return run


def test_another_threshold_in_the_derivation_is_refused(refused):
    """EVI-8; case 27: the verdict must be on the thresholds that were built with."""
    error = refused(remade("gate", "gate", making.GATE | {"k_min": "0.9"}))
    assert error.file == GATE


def test_a_threshold_above_the_score_is_refused(refused):
    """EVI-8; case 27: a gate that was not passed, however it is written down."""
    from kolm_build.core.kscore import KScore, Thresholds, gate

    def failing(files: Members) -> None:
        edit_line(RESULTS, 0, put(output="hot", correct=False, verified=False))(files)
        results = [json.loads(line) for line in files[RESULTS].splitlines()]
        size = json.loads(files[SUMMARY])["weight_bytes"]
        files[SUMMARY] = strict_json.dumps(making.summary(results, size))
        evidence = json.loads(files[KSCORE])["evidence"] | {"correct": 3, "verified": 3}
        from kolm_build.core.kscore import Evidence, score

        scored: KScore = score(Evidence.from_value(evidence))
        files[KSCORE] = strict_json.dumps(scored.to_value())
        remade("gate", "gate", making.GATE | {"accuracy_min": "0.9"})(files)
        verdict = gate(scored, Thresholds.parse(k="0.5", accuracy="0.9", coverage="0"))
        files[GATE] = strict_json.dumps(verdict.to_value())

    def claims(manifest) -> None:
        manifest["kscore"] |= {"accuracy": "0.7500", "coverage": "0.7500", "k": "0.8625"}

    assert refused(failing, claims).reason == "the gate was not passed"


@pytest.mark.parametrize("step", ["dataset", "score", "gate"])
def test_two_derivations_of_a_step_that_counts_are_refused(refused, step):
    """EVI-4, EVI-7, EVI-8: nobody could tell which one."""

    def twice(files: Members) -> None:
        made = making.node("other", step, {"epochs": 3})
        files[f"build/derivations/{made.digest.hex}.cbor"] = made.encode()

    assert "several derivations" in refused(twice).reason


def test_other_sets_of_rows_do_not_count(unsigned, tmp_path):
    """EVI-4: they were split against the rows that do."""

    def more(files: Members) -> None:
        rows = making.derivations()[0]
        votes = making.node(
            "dataset-votes",
            "dataset",
            {"split_seed": "x"},
            rows=making.digest("data"),
            against=rows,
        )
        files[f"build/derivations/{votes.digest.hex}.cbor"] = votes.encode()

    path = forge(unsigned, tmp_path / "forged.kolm", more, nothing)
    report = verify_artifact(path, trust=None)
    assert any(line.startswith("split:") for line in report.evidenced)


def test_a_misnamed_missing_or_malformed_derivation_is_refused(refused):
    """EVI-2."""

    def first(files: Members) -> str:
        return next(path for path in files if path.startswith("build/derivations/"))

    def misname(files: Members) -> None:
        files[f"build/derivations/{'0' * 64}.cbor"] = files.pop(first(files))

    def rename(files: Members) -> None:
        files["build/derivations/x.cbor"] = files.pop(first(files))

    def remove(files: Members) -> None:
        base = making.derivations()[1]
        del files[f"build/derivations/{base.digest.hex}.cbor"]

    def spoil(files: Members) -> None:
        files[first(files)] = b"\xa0\x00"

    def all_gone(files: Members) -> None:
        for path in [path for path in files if path.startswith("build/derivations/")]:
            del files[path]

    for change in (misname, rename, remove, spoil, all_gone):
        refused(change)


@pytest.mark.parametrize(
    "old", ["code gate", "torch", "python", "data"], ids=["code", "tool", "interpreter", "rows"]
)
def test_a_lock_that_does_not_name_what_was_used_is_refused(refused, old):
    """EVI-11: code, distributions, interpreter, contents."""

    def relock(files: Members) -> None:
        before, after = (str(making.digest(text)).encode() for text in (old, "other"))
        assert before in files["build/kolm.lock"]
        files["build/kolm.lock"] = files["build/kolm.lock"].replace(before, after)

    assert refused(with_sbom(relock)).file == "build"


@given(st.data())
def test_random_changes_of_the_evidence_are_refused_or_harmless(unsigned, data):
    """VER-2: nothing but a typed error ever comes out."""
    names = [name for name in members(unsigned) if not name.startswith(("manifest", "sbom"))]
    name = data.draw(st.sampled_from(names))
    at = data.draw(st.integers(0, 3000))
    piece = data.draw(
        st.sampled_from([b"", b"0", b"{", b'"', b"\n", b"null", b"-", b"\xff", b"9" * 30])
    )
    count = data.draw(st.integers(0, 3))

    def change(files: Members) -> None:
        place = at % (len(files[name]) + 1)
        files[name] = files[name][:place] + piece + files[name][place + count :]

    with TemporaryDirectory() as folder:
        path = forge(unsigned, Path(folder) / "x.kolm", change)
        try:
            verify_artifact(path, trust=None)
        except VerificationError:
            return


@pytest.mark.parametrize("path", ["build/kolm.toml", "build/kolm.lock", HOLDOUT, KSCORE, GATE])
def test_missing_evidence_is_refused(refused, path):
    """EVI-2 to EVI-8; case 28: no gate, no pass."""
    assert path.rpartition("/")[2] in str(refused(lambda files: files.pop(path)))


@pytest.mark.parametrize("path", ["build/kolm.toml", "build/kolm.lock"])
def test_a_story_that_is_not_toml_is_refused(refused, path):
    refused(lambda files: files.update({path: b"[[["}))


def test_another_bill_of_materials_is_refused(refused):
    """EVI-10, ART-9."""
    assert refused(edit("sbom/cyclonedx.json", put(version=2))).file == "sbom/cyclonedx.json"


def test_code_in_the_model_is_refused(refused):
    """EVI-9; cases 48 and 49."""
    config = json.dumps(making.CONFIG | {"auto_map": {"AutoModel": "x.Y"}}).encode()
    escaped = config.replace(b"auto_map", b"\\u0061uto_map")
    for data in (config, escaped, b"[]", b"{", b"\xff"):
        refused(lambda files, data=data: files.update({"model/config.json": data}))
    refused(lambda files: files.pop("model/config.json"))
    tokenizer = {"model/tokenizer_config.json": config}
    refused(with_sbom(lambda files: files.update(tokenizer)))


def with_sbom(change: Callable[[Members], None]) -> Callable[[Members], None]:
    """`change`, and the bill of materials that goes with it."""
    from kolm_build.core.manifest import ManifestMember
    from kolm_build.core.sbom import render_sbom
    from kolm_build.core.story import parse_story
    from tests.attest.helping import entry

    def run(files: Members) -> None:
        change(files)
        told = {
            path.removeprefix("build/"): data
            for path, data in files.items()
            if path.startswith("build/")
        }
        model = [
            ManifestMember.from_value(entry(path, files[path]))
            for path in sorted(files)
            if path.startswith("model/")
        ]
        files["sbom/cyclonedx.json"] = render_sbom(making.NAME, parse_story(told), model)

    return run


@pytest.mark.parametrize(
    "name", ["model/run.py", "model/pytorch_model.bin", "model/x.pt", "model/x"]
)
def test_a_file_that_no_model_needs_is_refused(refused, name):
    """EVI-9; case 48."""
    error = refused(with_sbom(lambda files: files.update({name: b"\x80\x04."})))
    assert error.file == name


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04K\x01.",
        b"\xff" * 16,
        (10).to_bytes(8, "little") + b"{}",
        encode_header([("a", "F32", (2,))], {}) + b"1234567",
    ],
    ids=["pickle", "length", "truncated", "short"],
)
def test_weights_that_are_not_strict_safetensors_are_refused(refused, data):
    """EVI-9; cases 46 and 48: a pickle under another name."""
    error = refused(with_sbom(lambda files: files.update({"model/model.safetensors": data})))
    assert error.file == "model/model.safetensors"


def test_a_tensor_in_two_files_is_refused(refused):
    """EVI-9."""
    data = making.weights()
    error = refused(with_sbom(lambda files: files.update({"model/more.safetensors": data})))
    assert error.reason == "a tensor in two files"


def test_the_id_of_a_row_is_the_digest_of_its_record():
    """EVI-4."""
    row = making.holdout(1)[0]
    record = {key: row[key] for key in ("answer", "group", "messages")}
    assert row["id"] == f"sha256:{hashlib.sha256(cbor.encode(record)).hexdigest()}"
