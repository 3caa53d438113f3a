"""The library's door: a model computes in the arithmetic it was judged in, whoever calls it."""

from __future__ import annotations

import pytest
import torch

import kolm_build.runtime
from kolm_build.core import archive
from kolm_build.core.manifest import Manifest
from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.numerics import kernels, portable
from kolm_build.runtime import answering
from kolm_build.runtime.asking import Prompt
from kolm_build.runtime.compiled import CompiledDecoder
from kolm_build.runtime.decoder import Decoder
from kolm_build.runtime.distribution import Distribution
from kolm_build.runtime.files import find_model
from kolm_build.runtime.settings import GenerationSettings
from tests.runtime.artifacts import write_artifact
from tests.support.models import tiny_llama
from tests.support.quantised import quantised

compiled = pytest.mark.skipif(
    not kernels.LIBRARY.is_file(), reason="the portable kernels are not compiled"
)
SETTINGS = GenerationSettings(max_new_tokens=9, distribution=Distribution(), seed=5)
PROMPTS = [
    Prompt(text=text) for text in ("a dry cough", "low mood", "low mood again", "hives", "x")
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    root = tmp_path_factory.mktemp("artifact")
    folder = quantised(tiny_llama(root / "tiny"), root / "w4a16", "w4a16", embeddings="int8")
    return write_artifact(root / "tiny.kolm", folder)


@compiled
def test_a_file_answers_alone_among_others_and_streamed(artifact):
    """GEN-2, GEN-40: with any number of threads, and after anything else."""
    one, two = (kolm_build.runtime.load(artifact, threads=threads) for threads in (1, 2))
    answers = one.answers(PROMPTS, SETTINGS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert two.generate(prompt.text, settings=SETTINGS) == answer
        assert "".join(one.stream(prompt.text, settings=SETTINGS)) == answer.text


@compiled
def test_the_portable_kernels_compute_while_a_model_answers_and_no_longer(artifact):
    model = answering.by_decoder(artifact)
    assert not portable.is_active()
    stream = model.stream("low mood", settings=SETTINGS)
    next(stream)
    assert portable.is_active()
    del stream
    assert not portable.is_active()


@compiled
def test_what_was_read_before_is_kept(artifact, monkeypatch):
    """GEN-30."""
    model = answering.by_decoder(artifact)
    system = "You are a careful clerk of a large hospital. " * 4
    read = []
    whole = Decoder._read

    def counted(self, ids, room):
        read.append(ids.shape[1])
        return whole(self, ids, room)

    monkeypatch.setattr(Decoder, "_read", counted)
    for prompt in ("low mood", "low tide"):
        model.generate(prompt, system=system, settings=GenerationSettings(max_new_tokens=1))
    assert read[0] > 180
    assert read[1] < 40


def test_a_native_artifact_is_answered_one_by_one_on_stock_kernels(tmp_path):
    """GEN-2."""
    folder = tiny_llama(tmp_path / "model")
    file = write_artifact(tmp_path / "native.kolm", folder, numerics="native-1")
    assert find_model(file).numerics == "native-1"
    model = kolm_build.runtime.load(file)
    assert model.together == 1
    assert not isinstance(model.model.network, Decoder | CompiledDecoder)
    assert model.generate("low mood", settings=SETTINGS).output_tokens
    assert torch.get_num_threads() == 1


def test_a_folder_is_answered_from_in_the_portable_class(tmp_path):
    assert find_model(tiny_llama(tmp_path / "model")).numerics == "portable-1"


def test_an_artifact_without_a_good_manifest_is_refused(tmp_path, artifact):
    data = artifact.read_bytes()
    at = data.index(b'"gate":"passed"')
    (tmp_path / "bad.kolm").write_bytes(data[:at] + b'"gate":"failed"' + data[at + 15 :])
    with pytest.raises(InvalidRecordError) as caught:
        kolm_build.runtime.load(tmp_path / "bad.kolm")
    assert caught.value.file == str(tmp_path / "bad.kolm")


@compiled
def test_a_prompt_that_does_not_fit_is_refused(artifact):
    """GEN-4."""
    model = kolm_build.runtime.load(artifact)
    with pytest.raises(InvalidDataError, match="window"):
        model.generate("long " * 300)
    with pytest.raises(InvalidDataError, match="window"):
        model.stream("long " * 300)


@pytest.mark.parametrize("numerics", ["portable-1", "native-1"])
def test_an_artifacts_directory_is_parsed_once(tmp_path, monkeypatch, numerics):
    """And its manifest: whichever way reads the model."""
    file = write_artifact(tmp_path / "x.kolm", tiny_llama(tmp_path / "model"), numerics=numerics)
    parsed, decoded = [], []
    parse, decode = archive.parse, Manifest.decode
    monkeypatch.setattr(archive, "parse", lambda *given: parsed.append(1) or parse(*given))
    monkeypatch.setattr(Manifest, "decode", lambda data: decoded.append(1) or decode(data))
    kolm_build.runtime.load(file)
    assert (len(parsed), len(decoded)) == (1, 1)
