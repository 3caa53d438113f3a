"""spec/artifact.md, spec/verify.md: an artifact of a quantised model, and who lies about one."""

import json
from decimal import Decimal

import pytest

from kolm_build.attest.container import Container
from kolm_build.attest.verify import verify_artifact
from kolm_build.core import strict_json
from kolm_build.core.manifest import FORMAT, QUANTISED_FORMAT, Manifest, bits_per_weight
from kolm_build.errors import EvidenceError, InvalidRecordError, ManifestError
from tests.artifact import making
from tests.attest.helping import forge, members
from tests.cli.command import kolm

FULL = ("eval/full-results.jsonl", "eval/full-summary.json", "eval/full-kscore.json")
REPORT = "eval/quantisation.json"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return making.make(tmp_path_factory.mktemp("quantised"), making.quantised)


@pytest.fixture
def refused(artifact, tmp_path):
    def run(change=lambda _: None, claims=lambda _: None, error=EvidenceError):
        path = forge(artifact, tmp_path / "forged.kolm", change, claims)
        with pytest.raises(error) as caught:
            verify_artifact(path, trust=None)
        return caught.value

    return run


def edit(path, **values):
    def run(files):
        files[path] = strict_json.dumps(json.loads(files[path]) | values)

    return run


def claim(**values):
    return lambda manifest: manifest["quantisation"].update(values)


def test_it_verifies_with_both_scores(artifact):
    """ART-1, ART-10, EVI-12."""
    report = verify_artifact(artifact, trust=None)
    how = report.manifest.quantisation
    assert (how.scheme, how.method) == ("w8a8", "rtn")
    assert how.full_kscore["accuracy"] == "1.0000"
    assert report.manifest.kscore["accuracy"] == "0.7500"
    assert any("full precision" in text for text in report.evidenced)
    assert any("full precision" in text for text in report.not_evidenced)
    assert report.to_value()["quantisation"] == how.to_value()


def test_its_members_and_format_are_those_of_a_quantised_model(artifact, unsigned):
    """ART-1, ART-10: any other artifact is as it was."""
    files = members(artifact)
    assert {*FULL, REPORT} <= files.keys()
    assert json.loads(files["manifest.json"])["format"] == QUANTISED_FORMAT
    plain = members(unsigned)
    assert not {*FULL, REPORT} & plain.keys()
    manifest = json.loads(plain["manifest.json"])
    assert manifest["format"] == FORMAT
    assert "quantisation" not in manifest


def test_bits_a_weight_are_those_of_all_that_is_stored(artifact):
    """ART-10."""
    stored = sum(
        {"I8": 1, "BF16": 2}[dtype] * making._count(shape)
        for _, dtype, shape in making.quantised_tensors()
    )
    parameters = sum(making._count(shape) for _, _, shape in making.TENSORS)
    with Container.open(artifact) as container:
        told = container.manifest.quantisation.bits_per_weight
    assert Decimal(told) == round(Decimal(8 * stored) / parameters, 4)
    with pytest.raises(InvalidRecordError):
        bits_per_weight(1, 0)


def test_a_manifest_is_what_it_was_written_from(artifact):
    """ART-1."""
    data = members(artifact)["manifest.json"]
    assert Manifest.decode(data).encode() == data
    for change in ({"format": FORMAT}, {"quantisation": {}}, {"quantisation": None}):
        with pytest.raises(InvalidRecordError):
            Manifest.decode(strict_json.dumps(json.loads(data) | change))


def test_a_quantised_format_without_a_quantisation_is_refused(unsigned, tmp_path):
    """ART-10."""
    path = forge(
        unsigned, tmp_path / "x.kolm", claims=lambda table: table.update(format=QUANTISED_FORMAT)
    )
    with pytest.raises(ManifestError):
        verify_artifact(path, trust=None)


@pytest.mark.parametrize(
    "values",
    [
        {"scheme": "w4a16"},
        {"method": "gptq"},
        {"full_kscore": {"k": "1.0000"}},
    ],
)
def test_a_claim_of_another_quantisation_is_refused(refused, values):
    """ART-10, EVI-12."""
    assert refused(claims=claim(**values)).file == "manifest.json"


def test_a_claim_of_fewer_bits_is_refused(refused):
    """ART-10, EVI-12: they follow from the headers."""
    error = refused(claims=claim(bits_per_weight="4.0000"))
    assert error.where == "bits_per_weight"


@pytest.mark.parametrize("path", [*FULL, REPORT])
def test_evidence_of_the_full_model_must_be_there(refused, path):
    """ART-10, EVI-12."""
    error = refused(lambda files: files.pop(path))
    assert "missing" in error.reason


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("eval/full-summary.json", {"correct": 3}),
        ("eval/full-summary.json", {"weight_bytes": 7}),
        ("eval/full-summary.json", {"metric": "label"}),
        ("eval/full-kscore.json", {"k": "0.9990"}),
        (REPORT, {"scheme": "w4a16"}),
        (REPORT, {"method": "gptq"}),
        (REPORT, {"parameters": 1}),
        (REPORT, {"tensor_bytes": 1}),
    ],
)
def test_figures_of_the_full_model_that_do_not_follow_are_refused(refused, path, values):
    """EVI-12."""
    refused(edit(path, **values))


def test_operations_of_the_full_model_are_counted_again(refused):
    """EVI-12: the same weights, so the same operations, whatever its results and score say."""

    def cheaper(files):
        summary = json.loads(files[FULL[1]])
        evidence = {"flops_per_request": summary["flops_per_request"] - 1}
        files[FULL[1]] = strict_json.dumps(summary | evidence)
        from kolm_build.core.kscore import Evidence, score

        before = json.loads(files[FULL[2]])["evidence"]
        scored = score(Evidence.from_value(before | evidence))
        files[FULL[2]] = strict_json.dumps(scored.to_value())

    error = refused(cheaper)
    assert (error.file, error.where) == (FULL[1], "flops_per_request")


def test_a_row_of_the_full_model_is_judged_again(refused):
    """EVI-12."""

    def wrong(files):
        rows = [json.loads(line) for line in files[FULL[0]].splitlines()]
        rows[0]["correct"] = not rows[0]["correct"]
        files[FULL[0]] = making.lines(rows)

    assert refused(wrong).file == FULL[0]


@pytest.mark.parametrize("path", [*FULL, REPORT])
def test_a_model_that_is_not_quantised_has_no_such_evidence(unsigned, tmp_path, path):
    """EVI-12, ART-10."""
    forged = forge(unsigned, tmp_path / "x.kolm", lambda files: files.update({path: b"{}"}))
    with pytest.raises(EvidenceError) as caught:
        verify_artifact(forged, trust=None)
    assert caught.value.file == path


def test_a_form_of_quantisation_that_is_not_known_is_refused(refused):
    """EVI-6: nobody could count its weights."""

    def other(files):
        config = json.loads(files["model/config.json"])
        config["quantization_config"]["quant_method"] = "bitsandbytes"
        files["model/config.json"] = json.dumps(config).encode()

    refused(other)


def test_packaging_refuses_half_of_the_evidence(tmp_path):
    """ART-10."""

    def half(made):
        making.quantised(made)
        story = made["story"]
        made["story"] = {name: story[name] for name in ("kolm.toml", "kolm.lock")}
        made["story"] |= making.derivation_files(making.derivations())

    with pytest.raises(InvalidRecordError, match="disagree"):
        making.make(tmp_path, half)


def test_both_scores_are_shown_side_by_side(artifact):
    shown = kolm("show", str(artifact))
    assert "full_kscore" in shown.out
    assert "bits_per_weight" in shown.out
    told = kolm("verify", str(artifact), "--no-trust")
    (line,) = [line for line in told.out.splitlines() if line.split()[:1] == ["accuracy"]]
    assert line.split() == ["accuracy", "0.7500", "1.0000", "in", "full", "precision"]
    assert "w8a8 by rtn" in told.out
