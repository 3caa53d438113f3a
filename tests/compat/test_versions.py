"""What an earlier version wrote is read, verified and rebuilt to the same bytes, for good."""

import io
import json
import shutil
from pathlib import Path

import pytest

from kolm_build.attest.trust import parse_trust
from kolm_build.attest.verify import verify_artifact
from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.lock import check, parse_lock, render_lock
from kolm_build.core.lock_version_1 import sections
from kolm_build.core.numerics import Platform
from kolm_build.core.recipe import parse_recipe
from kolm_build.errors import StaleLockError
from kolm_build.steps.table import STEPS
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.cli.door import through_door
from kolm_build.surfaces.cli.parser import dispatch
from kolm_build.surfaces.terminal import Terminal

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "kolm.toml").exists())


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def fixture(request, tmp_path):
    """A copy of one version's fixtures: opening a store may write to it."""
    folder = tmp_path / "fixture"
    shutil.copytree(request.param, folder, symlinks=True)
    for path in (folder / "objects").glob("*/**/*"):
        if path.is_file():
            path.chmod(0o444)  # git keeps no other modes than 0644 and 0755
    return folder


PIPELINES = [
    folder
    for version in ("lock-v1", "lock-v2")
    for folder in sorted((Path(__file__).parent / version).iterdir())
]


def _pipeline(folder):
    lock = parse_lock((folder / "kolm.lock").read_text("utf-8"), file="kolm.lock")
    text = (folder / "recipe.toml").read_text("utf-8")
    return parse_recipe(text, numerics_class=lock.numerics.cls), lock


@pytest.mark.parametrize("folder", PIPELINES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_pipeline_locked_before_has_the_nodes_it_had(folder):
    """LOCK-13, RECIPE-34: digests.json is what the code of that time made of recipe and lock.

    lock-v1 is of the time before there were stages, lock-v2 of that before quantisation.
    """
    recipe, lock = _pipeline(folder)
    check(recipe, lock)
    instance = instantiate(
        recipe,
        lock,
        steps=STEPS,
        platform=Platform(isa="x86_64-v4", vendor="AuthenticAMD"),
        story=lambda above: Digest.of_blob(b"".join(one.digest.raw for one in above.values())),
    )
    wanted = json.loads((folder / "digests.json").read_text("utf-8"))
    assert {name: str(digest) for name, digest in instance.digests.items()} == wanted
    assert render_lock(lock) == (folder / "kolm.lock").read_text("utf-8")


@pytest.mark.parametrize(
    ("before", "after", "section"),
    [
        ("lora_r = 16\nlora_alpha = 32", 'adapter = "full"', "train"),
        ('algorithm = "sft"', 'algorithm = "sft"\nname = "taught"', "train"),
        (
            'algorithm = "sft"',
            'algorithm = "sft"\nfrom = "base"\n[[train]]\nalgorithm = "sft"',
            "train",
        ),
        ("lora_r = 16", "lora_r = 8", "train"),
        ('prompt = "{text}"', 'prompt = "{text}?"', "data"),
        (
            "[split]",
            '[sets.more]\nfrom = "path:./m.jsonl"\nschema = "texts"\ntext = "{t}"\n[split]',
            "sets",
        ),
        ("[split]", '[models.big]\nscript = "big.py"\nformat = "gguf"\n[split]', "models"),
    ],
)
def test_such_a_lock_knows_when_its_recipe_says_something_else(before, after, section):
    """LOCK-4, LOCK-13."""
    folder = Path(__file__).parent / "lock-v1" / "tiny"
    text = (folder / "recipe.toml").read_text("utf-8")
    assert before in text
    _, lock = _pipeline(folder)
    with pytest.raises(StaleLockError) as caught:
        check(parse_recipe(text.replace(before, after, 1)), lock)
    assert caught.value.where == f"recipe.{section}"


def test_checkpoints_are_nothing_that_such_a_lock_knows():
    """LOCK-13."""
    text = (Path(__file__).parent / "lock-v1" / "tiny" / "recipe.toml").read_text("utf-8")
    plain, aside = (
        parse_recipe(text.replace("lora_r = 16", f"lora_r = 16\nmax_steps = 20\n{more}"))
        for more in ("", "checkpoint_steps = 5")
    )
    then = [sections(recipe.pipeline, recipe.sections)["train"] for recipe in (plain, aside)]
    assert then[0] != then[1]


def test_there_are_fixtures_of_the_first_version():
    assert "v1" in [path.name for path in VERSIONS]


def test_the_lock_is_read_and_would_be_written_the_same(fixture):
    text = (fixture / "kolm.lock").read_text("utf-8")
    assert render_lock(parse_lock(text, file="kolm.lock")) == text


def test_derivations_keep_their_digests(fixture):
    records = [path for path in (fixture / "objects" / "drv").rglob("*") if path.is_file()]
    assert records
    for path in records:
        derivation = Derivation.decode(path.read_bytes())
        assert derivation.digest.hex in str(path).replace("/", "")


def test_the_store_is_whole(fixture):
    with LocalStore.open(fixture / "objects") as store:
        assert store.fsck().findings == ()


def test_every_output_is_rebuilt_by_the_code_of_its_time(fixture):
    """The code in the store runs, not the code that is installed."""
    told = io.StringIO()
    terminal = Terminal(out=told, err=told)
    argv = ("build", "--check", "-C", str(fixture), "--store", str(fixture / "objects"))
    status = through_door(lambda: dispatch(argv, terminal), argv, terminal)
    assert status == 0, told.getvalue()
    assert told.getvalue().count("verified") == 2, told.getvalue()


def test_the_artifact_verifies(fixture):
    trust = parse_trust((fixture / "trust.toml").read_bytes(), "trust.toml")
    report = verify_artifact(fixture / "artifact.kolm", trust=trust)
    assert report.trusted
    assert Digest.parse(report.manifest_b3)
