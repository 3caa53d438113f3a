"""spec/artifact.md, spec/verify.md: an artifact of a model with an adapter, and lies about one."""

import json

import pytest

from kolm_build.attest.verify import verify_artifact
from kolm_build.core import strict_json
from kolm_build.core.attached import read_attached
from kolm_build.core.attached_files import FILES
from kolm_build.core.manifest import ATTACHED_FORMAT, FORMAT, AdapterClaim, Manifest, Quantisation
from kolm_build.core.request import StepRequest
from kolm_build.core.safetensors import encode_header
from kolm_build.core.sbom import PATH as SBOM
from kolm_build.core.sbom import render_sbom
from kolm_build.core.story import parse_story
from kolm_build.errors import EvidenceError, InvalidRecordError, ManifestError
from kolm_build.steps import package
from kolm_build.steps._artifact import Artifact
from tests.artifact import making
from tests.attest.helping import forge, members

ADAPTER = "model/adapter_model.safetensors"
CONFIG = "model/adapter_config.json"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return making.make(tmp_path_factory.mktemp("attached"), making.attached)


@pytest.fixture
def refused(artifact, tmp_path):
    def run(change=lambda _: None, claims=lambda _: None, error=EvidenceError):
        def whole(files):
            change(files)
            files[SBOM] = bill_of_materials(files)

        path = forge(artifact, tmp_path / "forged.kolm", whole, claims)
        with pytest.raises(error) as caught:
            verify_artifact(path, trust=None)
        return caught.value

    return run


def bill_of_materials(files):
    told = {path[6:]: data for path, data in files.items() if path.startswith("build/")}
    paths = sorted(path for path in files if path.startswith("model/"))
    entries = [package._entry(path, [files[path]]) for path in paths]
    return render_sbom(making.NAME, parse_story(told), entries)


def edit(path, **values):
    def run(files):
        files[path] = strict_json.dumps(json.loads(files[path]) | values)

    return run


def numbers():
    return sum(making._count(shape) for _, _, shape in making.beside())


def test_it_verifies_and_says_what_is_beside_the_weights(artifact):
    """ART-1, ART-11, ART-13."""
    report = verify_artifact(artifact, trust=None)
    told = report.manifest.adapter
    assert told == AdapterClaim(kind="KOLM_MOE_LORA", parameters=numbers(), base=making.base_id())
    assert report.to_value()["adapter"] == told.to_value()
    assert report.manifest.weights_id != told.base
    assert any(text.startswith("adapter: ") for text in report.evidenced)
    assert any("trained on these weights" in text for text in report.not_evidenced)
    assert any("FLOPs" in text for text in report.evidenced)


def test_its_format_is_its_own_and_any_other_artifact_is_as_it_was(artifact, unsigned):
    """ART-1, ART-11."""
    files = members(artifact)
    assert {f"model/{name}" for name in FILES} <= files.keys()
    data = files["manifest.json"]
    assert json.loads(data)["format"] == ATTACHED_FORMAT
    assert Manifest.decode(data).encode() == data
    plain = json.loads(members(unsigned)["manifest.json"])
    assert plain["format"] == FORMAT
    assert "adapter" not in plain
    for change in ({"format": FORMAT}, {"adapter": {}}, {"adapter": None}):
        with pytest.raises(InvalidRecordError):
            Manifest.decode(strict_json.dumps(json.loads(data) | change))


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"kind": "LORA"}, "adapter.kind"),
        ({"parameters": 1}, "adapter.parameters"),
        ({"base": "b3:" + "0" * 64}, "adapter.base"),
    ],
)
def test_a_claim_of_another_adapter_is_refused(refused, values, where):
    """ART-11, ART-13."""
    error = refused(claims=lambda manifest: manifest["adapter"].update(values))
    assert (error.file, error.where) == ("manifest.json", where)


def test_an_adapter_that_the_manifest_does_not_tell_of_is_refused(refused):
    """ART-11: nobody takes the base for the model."""

    def claims(manifest):
        manifest.pop("adapter")
        manifest["format"] = FORMAT

    assert refused(claims=claims).where == "adapter"


def test_a_plain_model_that_claims_one_is_refused(unsigned, tmp_path):
    """ART-11."""

    def claims(manifest):
        manifest["format"] = ATTACHED_FORMAT
        manifest["adapter"] = {"kind": "KOLM_MOE_LORA", "parameters": 1, "base": "b3:" + "0" * 64}

    path = forge(unsigned, tmp_path / "x.kolm", claims=claims)
    with pytest.raises(EvidenceError):
        verify_artifact(path, trust=None)
    path = forge(
        unsigned, tmp_path / "y.kolm", claims=lambda table: table.update(format=ATTACHED_FORMAT)
    )
    with pytest.raises(ManifestError):
        verify_artifact(path, trust=None)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_adapter_must_be_there(refused, name):
    """ART-13."""
    error = refused(lambda files: files.pop(f"model/{name}"))
    assert "part of the adapter is missing" in error.reason
    assert error.where == name


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"experts": 3}, f"{FILES[1]}: model.layers.0.mlp.up_proj.down"),
        ({"top_k": 3}, "top_k"),
        ({"routing": "soft"}, "top_k"),
        ({"target_modules": ["up_proj", "q_proj"]}, "target_modules"),
        ({"target_modules": ["k_proj"]}, "target_modules"),
        ({"target_modules": ["norm", "q_proj"]}, "target_modules"),
        ({"target_modules": ["q_proj"]}, f"{FILES[1]}: model.layers.0.mlp.up_proj.down"),
        ({"target_modules": []}, "target_modules"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"peft_type": "PREFIX_TUNING"}, "num_virtual_tokens"),
        ({"peft_type": "LORA"}, "peft_type"),
        ({"also": 1}, "also"),
    ],
)
def test_a_configuration_of_other_tensors_is_refused(refused, values, where):
    """ALG-23, ART-13."""
    assert refused(edit(CONFIG, **values)).where == where


def test_whole_numbers_are_no_weights(refused):
    """ALG-23."""
    tensors = [(name, "I32", shape) for name, _, shape in making.beside()]
    data = encode_header(sorted(tensors), {"format": "pt"}) + bytes(4 * numbers())

    error = refused(lambda files: files.update({ADAPTER: data}))
    assert error.actual.startswith("I32")


def test_nothing_is_packaged_that_does_not_belong_together(tmp_path):
    """ART-12, ART-11."""

    def other(made):
        making.attached(made)
        base = {"stored": "plain", "weights": "b3:" + "1" * 64}
        made["model"]["base.json"] = strict_json.dumps(base)

    with pytest.raises(InvalidRecordError, match="trained on other weights"):
        making.make(tmp_path / "a", other)

    def untold(made):
        story = made["story"]
        making.attached(made)
        made["story"] = story

    with pytest.raises(InvalidRecordError, match="story disagree"):
        making.make(tmp_path / "b", untold)


def test_no_manifest_has_both(artifact):
    """ART-12."""
    made = Manifest.decode(members(artifact)["manifest.json"])
    how = Quantisation(scheme="w8a8", method="rtn", bits_per_weight="8.0", full_kscore={})
    facts = {name: getattr(made, name) for name in ("name", "members", "weights_id", "numerics")}
    with pytest.raises(InvalidRecordError, match="quantised model with an adapter"):
        Manifest(
            **facts,
            licence=made.licence,
            kscore=made.kscore,
            quantisation=how,
            adapter=made.adapter,
        )


def test_it_is_not_exported(artifact, tmp_path):
    """ALG-22: no format has a place for it, and the base alone is another model."""
    for path, data in members(artifact).items():
        if path == "manifest.json" or path.startswith("model/"):
            making.write_tree(tmp_path, {path: data})
    request = StepRequest(
        step="export-safetensors",
        params={},
        inputs={"artifact": str(tmp_path)},
        outputs={},
        scratch=str(tmp_path),
        numerics=making.node("x", "package", {}).numerics,
        events_fd=1,
        circumstances=None,
    )
    with pytest.raises(InvalidRecordError, match="cannot be exported"):
        Artifact.read(request)


def test_a_configuration_is_what_it_was_written_from():
    """ALG-23."""
    assert read_attached(making.ATTACHED.to_value()) == making.ATTACHED


def test_virtual_tokens_verify_with_what_they_cost(tmp_path):
    """ART-13, ALG-24, EVAL-18."""
    artifact = making.make(tmp_path, making.virtual)
    report = verify_artifact(artifact, trust=None)
    told = report.manifest.adapter
    assert (told.kind, told.parameters) == ("PREFIX_TUNING", 3 * 2 * making.HIDDEN // 2)
    assert any("FLOPs" in text for text in report.evidenced)
    assert read_attached(making.VIRTUAL.to_value()) == making.VIRTUAL


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    return making.make(tmp_path_factory.mktemp("gated"), making.gated)


def test_adapters_that_are_mixed_verify_with_what_two_readings_cost(gated):
    """ART-13, MOE-46, MOE-47."""
    report = verify_artifact(gated, trust=None)
    wanted = making.GATED.wanted({name: shape for name, _, shape in making.TENSORS})
    numbers = sum(making._count(shape) for shape in wanted.values())
    told = report.manifest.adapter
    assert (told.kind, told.parameters) == ("KOLM_X_LORA", numbers)
    assert any("FLOPs" in text for text in report.evidenced)
    assert read_attached(making.GATED.to_value()) == making.GATED


ONE = {"lora_alpha": 4, "r": 2, "use_rslora": False}


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"experts": []}, "top_k"),
        ({"experts": [ONE]}, f"{FILES[1]}: model.layers.0.mlp.up_proj.down"),
        ({"experts": [ONE, ONE | {"r": 0}]}, "experts[1].r"),
        ({"experts": [ONE, ONE | {"use_dora": True}]}, "experts[1].use_dora"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 3}, "top_k"),
        ({"widths": []}, f"{FILES[1]}: gating.0.bias"),
        ({"widths": [0]}, "widths[0]"),
        ({"widths": [True]}, "widths[0]"),
        ({"hidden_size": 9}, f"{FILES[1]}: gating.0.weight"),
        ({"target_modules": ["q_proj"]}, f"{FILES[1]}: model.layers.0.mlp.up_proj.down"),
        ({"target_modules": ["up_proj", "q_proj"]}, "target_modules"),
        ({"also": 1}, "also"),
    ],
)
def test_a_mixture_of_other_adapters_is_refused(gated, tmp_path, values, where):
    """MOE-46, ART-13."""

    def change(files):
        edit(CONFIG, **values)(files)
        files[SBOM] = bill_of_materials(files)

    path = forge(gated, tmp_path / "forged.kolm", change, lambda _: None)
    with pytest.raises(EvidenceError) as caught:
        verify_artifact(path, trust=None)
    assert caught.value.where == where
