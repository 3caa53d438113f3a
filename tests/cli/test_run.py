"""`kolm run`: what it asks, what it prints, and what it refuses before anything is loaded."""

from __future__ import annotations

import json
import os

import pytest

from kolm_build.attest import container
from kolm_build.core import archive
from kolm_build.numerics import kernels
from tests.cli.command import kolm, kolm_process
from tests.runtime.artifacts import write_artifact
from tests.support.models import tiny_llama
from tests.support.quantised import quantised


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    root = tmp_path_factory.mktemp("artifact")
    folder = quantised(tiny_llama(root / "tiny"), root / "w8a16", "w8a16", embeddings="int8")
    return str(write_artifact(root / "tiny.kolm", folder))


compiled = pytest.mark.skipif(
    not kernels.LIBRARY.is_file(), reason="the portable kernels are not compiled"
)


def run(artifact, *argv):
    """In a process of its own, as a user does: it sets the threads of the maths libraries."""
    return kolm_process("run", artifact, *argv, "--max-new-tokens", "12", "--threads", "1")


@compiled
def test_an_answer_comes_as_text_as_json_and_as_it_is_said(artifact):
    """GEN-3, GEN-12."""
    drawn = ("--temperature", "0.9", "--top-k", "90", "--top-p", "0.9", "--seed", "4", "low mood")
    answer = json.loads(run(artifact, *drawn, "--json").out)
    assert set(answer) == {"end", "output_tokens", "prompt_tokens", "text"}
    assert answer["end"] in ("end", "length")
    assert run(artifact, *drawn, "--stream").out == answer["text"] + "\n"


@compiled
def test_prompts_of_a_file_are_answered_as_lines_in_their_order(artifact, tmp_path):
    """GEN-2: and each as it is alone."""
    rows = [
        {"prompt": "low mood", "id": "a"},
        {"prompt": "hives", "system": "Be brief."},
        {"prompt": "low mood"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    done = run(artifact, "--prompts", str(file))
    assert (done.status, done.err) == (0, "")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer.pop("id", None) for answer in answers] == ["a", None, None]
    assert answers[0] == answers[2]
    alone = json.loads(run(artifact, "--system", "Be brief.", "hives", "--json").out)
    assert answers[1] == alone


@compiled
def test_an_answer_that_was_cut_off_before_its_form_is_an_error(artifact, tmp_path):
    """GEN-18."""
    labels = tmp_path / "labels"
    labels.write_text("a label of more than twelve tokens\n")
    done = run(artifact, "--labels", str(labels), "low mood")
    assert done.status == 8
    assert "cut off before it had the form" in done.err
    labels.write_text("lung\nmind\n")
    done = run(artifact, "--labels", str(labels), "low mood")
    assert done.status == 0
    assert done.out.strip() in ("lung", "mind")


FORMS = [
    ("--regex", "(", "unclosed group: '('"),
    ("--regex", "a{2,1}", "the start must be <= the end: 'a{2,1}'"),
    ("--regex", "a\\", "a backslash ends the regular expression"),
    ("--regex", "(?=a)b", "look-around, including look-ahead and look-behind, is not supported"),
    ("--json-schema", "{", "not JSON"),
    ("--json-schema", "[]", "not a JSON object"),
    ("--json-schema", '{"type": "nope"}', "Invalid type: nope"),
    ("--json-schema", '{"properties": {"a": {"not": {}}}}', ", properties.a: a keyword"),
    ("--json-schema", '{"type": "string", "enum": [1]}', "incompatible types"),
    ("--labels", "", "a label set needs labels"),
]


@compiled
@pytest.mark.parametrize(("option", "given", "wanted"), FORMS)
def test_a_form_that_nothing_has_is_refused_by_its_option(
    artifact, tmp_path, option, given, wanted
):
    """GEN-17: with its file and what to do."""
    file = tmp_path / "form"
    file.write_text(given)
    done = run(artifact, option, given if option == "--regex" else str(file), "low mood")
    assert done.status == 2
    place = "" if option == "--regex" else f"{file}: "
    assert done.err.startswith(f"error: {place}{option}"), done.err
    assert wanted in done.err
    advice = {
        "--regex": "syntax of Rust's regex",
        "--json-schema": "schema",
        "--labels": "one label a line",
    }
    assert advice[option] in done.err.splitlines()[-1].replace("JSON Schema", "schema")
    assert "1 | start" not in done.err


WRONG = [
    ((), "ask one question, or name a file"),
    (("x", "--prompts", "{file}"), "ask one question, or name a file"),
    (("x", "--stream", "--json"), "--stream prints one answer"),
    (("--stream", "--prompts", "{file}"), "--stream prints one answer"),
    (("x", "--top-p", "0.5"), "nothing is drawn at the temperature 0"),
    (("x", "--temperature", "0.001"), "out of range"),
    (("x", "--temperature", "warm"), "not a number"),
    (("x", "--temperature", "nan"), "out of range"),
    (("x", "--temperature", "1", "--top-p", "2"), "out of range"),
    (("x", "--seed", "-1"), "not a whole number"),
    (("x", "--regex", "a", "--labels", "{file}"), "not allowed with argument"),
    (("x", "--labels", "{nowhere}"), "cannot be read"),
    (("x", "--json-schema", "{nowhere}"), "cannot be read"),
    (("--prompts", "{nowhere}"), "cannot be read"),
    (("--prompts", "{empty}"), "no prompts"),
    (("--prompts", "{bytes}"), "not UTF-8"),
    (("--prompts", "{file}"), "line 2"),
]


@pytest.mark.parametrize(("argv", "wanted"), WRONG)
def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(tmp_path, argv, wanted):
    """GEN-7."""
    (tmp_path / "file").write_text('{"prompt": "x"}\n{"prompt": "x", "surprise": 1}\n')
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "x.kolm").write_bytes(b"")
    places = {name: str(tmp_path / name) for name in ("file", "empty", "bytes", "nowhere")}
    done = kolm("run", str(tmp_path / "x.kolm"), *(one.format(**places) for one in argv))
    assert done.status == 2
    assert wanted in done.err
    assert "Traceback" not in done.err


def test_a_file_that_is_not_there_is_refused():
    assert "no such file" in kolm("run", "nowhere.kolm", "x").err


@compiled
def test_an_artifacts_directory_is_parsed_once(artifact, monkeypatch):
    """To check it and to load from it."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # and put back afterwards
    parsed, opened = [], []
    parse, open_regular = archive.parse, container.open_regular
    for module in (archive, container):
        monkeypatch.setattr(module, "parse", lambda *given: parsed.append(1) or parse(*given))
    monkeypatch.setattr(
        container, "open_regular", lambda *given: opened.append(1) or open_regular(*given)
    )
    answer = kolm("run", artifact, "low mood", "--max-new-tokens", "1", "--threads", "1")
    assert answer.status == 0, answer.err
    assert (len(parsed), len(opened)) == (1, 1)
