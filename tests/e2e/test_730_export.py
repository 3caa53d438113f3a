"""An artifact goes out in the formats of others, through the command line and the sandbox."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from kolm_build.core.export_formats import FORMATS
from kolm_build.core.exports import content_of
from kolm_build.core.manifest import Manifest
from kolm_build.core.safetensors import header_length, parse_header
from kolm_build.store.local import LocalStore
from tests.artifact.making import make
from tests.cli.command import Answer, kolm


@dataclass(frozen=True)
class Place:
    """An artifact, and a store that is not the user's."""

    artifact: Path
    store: Path

    def export(self, form: str, out: Path, *argv: str) -> Answer:
        return kolm(
            *("export", str(self.artifact), "--format", form, "-o", str(out)),
            *("--store", str(self.store)),
            *argv,
        )

    def told(self, form: str, out: Path, *argv: str) -> dict:
        answer = self.export(form, out, "--json", *argv)
        assert answer.status == 0, answer.err
        return json.loads(answer.out)

    @property
    def id(self) -> str:
        return json.loads(kolm("show", str(self.artifact), "--json").out)["artifact"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return Place(artifact=make(folder / "made"), store=folder / "store")


def metadata(weights: Path) -> dict[str, str]:
    data = weights.read_bytes()
    return dict(parse_header(data[8 : 8 + header_length(data[:8], len(data))], len(data)).metadata)


def test_an_export_names_its_artifact_and_is_made_once(place, tmp_path):
    """EXPORT-1, EXPORT-4: its derivation is in the store, with the input that EXPORT-1 says."""
    first = place.told("safetensors", tmp_path / "one")
    assert metadata(tmp_path / "one" / "model.safetensors")["kolm.source"] == place.id
    assert first["artifact_id"] == place.id
    assert first["bytes"] == sum(path.stat().st_size for path in (tmp_path / "one").iterdir())
    answer = place.export("safetensors", tmp_path / "two")
    assert "cached" in answer.err
    assert first["content"] in answer.out
    with LocalStore.open(place.store) as store:
        (one,) = [
            found
            for found in map(store.derivation, store.derivations())
            if str(found.digest) == first["derivation"]
        ]
        (input_,) = one.inputs
        store.materialise(input_[1].content, tmp_path / "content")
        manifest = (tmp_path / "content" / "manifest.json").read_bytes()
    assert input_[0] == "artifact"
    assert input_[1].content == content_of(Manifest.decode(manifest), manifest)
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == place.id


def test_what_is_written_can_be_changed_and_removed(place, tmp_path):
    place.told("modelpack", tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        assert path.stat().st_mode & 0o200, path


def test_numbers_on_request(place, tmp_path):
    """EXPORT-8: and a GGUF file has no such choice."""
    answer = place.export("gguf-f16", tmp_path / "x.gguf", "--dequantise")
    assert (answer.status, "--dequantise needs --format safetensors" in answer.err) == (2, True)
    answer = kolm("export", "--dequantise", "fp32")
    assert answer.status == 2


def test_a_damaged_artifact_is_not_exported(place, tmp_path):
    """EXPORT-2."""
    data = bytearray(place.artifact.read_bytes())
    data[data.index(b'"hidden_size"') + 1] ^= 1
    (tmp_path / "bad.kolm").write_bytes(data)
    bad = Place(artifact=tmp_path / "bad.kolm", store=place.store)
    answer = bad.export("safetensors", tmp_path / "out")
    assert answer.status != 0
    assert "model/config.json" in answer.err
    assert not (tmp_path / "out").exists()


def test_a_model_that_the_format_cannot_hold_leaves_nothing(place, tmp_path):
    """EXPORT-6, EXPORT-11: this one has no tokenizer."""
    answer = place.export("gguf-q8_0", tmp_path / "x.gguf")
    assert answer.status != 0
    assert "tokenizer.json" in answer.err or "config.json" in answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_a_folder_that_holds_something_stays(place, tmp_path):
    """EXPORT-6."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    answer = place.export("safetensors", tmp_path / "out")
    assert (answer.status, "something is there already" in answer.err) == (2, True)
    assert (tmp_path / "out" / "mine").read_text() == "mine"


@pytest.mark.parametrize("form", ["gguf-q8_0", "safetensors"])
def test_a_file_that_is_there_stays_and_the_way_to_replace_it_is_told(place, tmp_path, form):
    """EXPORT-6: before anything is made, which here could not be made as GGUF."""
    out = tmp_path / "mine"
    out.write_text("mine")
    answer = place.export(form, out)
    assert (answer.status, "something is there already" in answer.err) == (2, True)
    assert "--force" in answer.err
    assert out.read_text() == "mine"


def test_a_folder_that_holds_something_is_replaced_where_that_is_asked(place, tmp_path):
    """EXPORT-6."""
    (tmp_path / "out").mkdir()
    place.told("safetensors", tmp_path / "out")
    (tmp_path / "out" / "mine").write_text("mine")
    place.told("safetensors", tmp_path / "out", "--force")
    assert not (tmp_path / "out" / "mine").exists()
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]


def test_a_folder_with_the_working_folder_or_the_store_in_it_is_never_replaced(
    place, tmp_path, monkeypatch
):
    """EXPORT-6, CLI-38."""
    (tmp_path / "out" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / "here")
    for dest in (tmp_path / "out", Path(), place.store):
        answer = place.export("safetensors", dest, "--force")
        assert (answer.status, "this folder is not replaced" in answer.err) == (2, True)
    assert (tmp_path / "out" / "here").is_dir()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--format", "safetensors"], "--format needs one artifact"),
        (["a.kolm", "b.kolm", "--format", "safetensors"], "--format needs one artifact"),
        (["none.kolm", "--format", "safetensors"], "no such file"),
        (["a.kolm", "--format", "safetensors", "--thin"], "--thin and --format do not go together"),
        (["a.kolm", "--format", "pickle"], "invalid choice: 'pickle'"),
    ],
)
def test_what_is_asked_wrongly_is_told(argv, said):
    answer = kolm("export", *argv)
    assert answer.status == 2
    assert said in answer.err


def test_every_format_has_a_step():
    from kolm_build.steps.table import STEPS

    assert {form.step for form in FORMATS.values()} <= STEPS.keys()
