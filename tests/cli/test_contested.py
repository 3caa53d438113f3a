"""The two contents that a store has for one training are found with its inputs."""

from types import SimpleNamespace

import pytest

from kolm_build.core.derivation import ContentInput, Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.numerics import Numerics
from kolm_build.core.realisation import Realisation
from kolm_build.errors import MissingObjectError, UsageError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.contested import training_of


def node(name, step, inputs, outputs):
    return Derivation(
        name=name,
        step=step,
        code=Digest.of_blob(b"code"),
        environment=None,
        params=(),
        inputs=inputs,
        outputs=tuple((output, None) for output in outputs),
        numerics=Numerics(cls="portable-1"),
    )


@pytest.fixture
def store(tmp_path):
    with LocalStore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def look():
    """A project of two nodes: a model that is built, and a training of it."""
    base = node("base", "import-model", (), ("out",))
    inputs = (
        ("model", OutputInput(derivation=base.digest, output="out")),
        ("train", ContentInput(content=Digest.of_blob(b"rows"))),
    )
    train = node("train-1", "sft", inputs, ("adapter", "trace"))
    nodes = {"base": base, "train-1": train}

    def find(text):
        name, _, output = text.partition(".")
        return OutputInput(derivation=nodes[name].digest, output=output)

    return SimpleNamespace(
        instance=SimpleNamespace(
            nodes=nodes,
            derivations={one.digest: one for one in nodes.values()},
            find=find,
        ),
        names={one.digest: name for name, one in nodes.items()},
    )


def keep(store, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "file").write_text(name)
    return store.ingest(folder)


def claim(store, made, resolved, output, content, **circumstances):
    store.add_realisation(
        Realisation(resolved=resolved, output=output, content=content),
        derivation=store.put_derivation(made),
        circumstances=circumstances,
    )


def test_both_traces_come_with_inputs_and_circumstances(store, look, tmp_path):
    base, train = look.instance.nodes.values()
    model, one, other = (keep(store, tmp_path, name) for name in ("model", "one", "other"))
    claim(store, base, base.resolved_digest, "out", model)
    resolved = train.resolved_digest_with({train.needs[0]: model})
    for content, threads in ((one, 1), (other, 2), (one, 4)):
        claim(store, train, resolved, "trace", content, threads=threads)
    found = training_of(look, "train-1", store)
    assert found.inputs == {"model": model, "train": Digest.of_blob(b"rows")}
    assert [content for content, _ in found.traces] == sorted([one, other])
    threads = {content: around["threads"] for content, around in found.traces}
    assert threads[other] == 2
    assert threads[one] in {1, 4}


def test_a_training_whose_model_was_never_built_is_refused(store, look):
    with pytest.raises(MissingObjectError) as caught:
        training_of(look, "train-1", store)
    assert caught.value.where == "base"


def test_a_node_that_does_not_train_is_refused(store, look):
    with pytest.raises(UsageError, match="not a node that trains"):
        training_of(look, "base", store)
