"""What `kolm show` tells people."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from kolm_build.core.derivation import OutputInput
from kolm_build.core.digest import Digest
from kolm_build.errors import MissingObjectError, UsageError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.cli.show import told_once
from kolm_build.surfaces.lookup import find_output
from kolm_build.surfaces.training import check_has_figures, figures_of
from tests.artifact import making
from tests.artifact.making import make
from tests.cli.command import kolm


def test_an_artifact_is_shown_with_one_line_for_each_deep_folder(tmp_path):
    artifact = make(tmp_path / "artifact")
    told = kolm("show", str(artifact))
    assert told.status == 0
    lines = [line.split(":")[0].strip() for line in told.out.splitlines()]
    assert "eval/results.jsonl" in lines
    assert "build/derivations/" in lines
    assert not [line for line in lines if line.startswith("build/derivations/") and "cbor" in line]


def claim(content, circumstances):
    return [{"content": content, "circumstances": circumstances}]


def test_what_the_outputs_of_one_build_have_in_common_is_told_once():
    outputs = {"adapter": claim("b3:1", {"cpu_ms": 7}), "trace": claim("b3:2", {"cpu_ms": 7})}
    assert told_once({"node": "train-1", "outputs": outputs}) == {
        "node": "train-1",
        "outputs": {"adapter": "b3:1", "trace": "b3:2"},
        "circumstances": {"cpu_ms": 7},
    }


@pytest.mark.parametrize(
    "outputs",
    [
        {"adapter": claim("b3:1", {"cpu_ms": 7}), "trace": claim("b3:2", {"cpu_ms": 8})},
        {"adapter": claim("b3:1", {}) + claim("b3:3", {}), "trace": claim("b3:2", {})},
        {"adapter": [], "trace": []},
        {"out": claim("b3:1", {"cpu_ms": 7})},
    ],
)
def test_outputs_that_differ_are_told_one_by_one(outputs):
    assert told_once({"node": "x", "outputs": outputs}) == {"node": "x", "outputs": outputs}


@pytest.mark.parametrize("what", ["artifact", "b3:" + "0" * 64])
def test_only_what_trains_can_be_drawn(tmp_path, what):
    """CLI-34."""
    if what == "artifact":
        what = str(make(tmp_path / "artifact"))
    told = kolm("show", what, "--plot", str(tmp_path / "x.svg"))
    assert (told.status, told.out) == (2, "")
    assert "a node that trains" in told.err
    assert not (tmp_path / "x.svg").exists()


def test_an_artifact_that_is_not_there_is_no_unknown_node():
    instance = SimpleNamespace(nodes={})
    with pytest.raises(UsageError, match="no such file"):
        find_output(instance, "triage.kolm")


@pytest.fixture
def store(tmp_path):
    with LocalStore.open(tmp_path / "store") as opened:
        yield opened


def training(outputs=("adapter", "metrics")):
    found = making.node("train-1", "sft", {})
    return replace(found, outputs=tuple((name, None) for name in outputs))


def plan_of(derivation, content):
    output = OutputInput(derivation=derivation.digest, output="metrics")
    return SimpleNamespace(contents={} if content is None else {output: content})


def test_figures_are_those_of_the_table_that_was_built(store, tmp_path):
    """CLI-33."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,loss\n1,2.0\n2,1.0\n")
    found = figures_of(training(), plan_of(training(), store.ingest(folder)), store)
    assert [(one.name, one.values) for one in found] == [("loss", (2.0, 1.0))]
    check_has_figures(training(), found)


@pytest.mark.parametrize("content", [None, Digest.of_blob(b"collected")])
def test_what_was_never_built_or_is_gone_has_no_figures_to_draw(store, content):
    """CLI-34."""
    found = figures_of(training(), plan_of(training(), content), store)
    assert found == ()
    with pytest.raises(MissingObjectError, match="never built"):
        check_has_figures(training(), found)


def test_a_node_that_trains_nothing_has_no_figures_to_draw():
    """CLI-34."""
    with pytest.raises(UsageError, match="trains nothing"):
        check_has_figures(training(("out",)), ())
