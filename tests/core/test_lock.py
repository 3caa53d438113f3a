"""spec/lock.md: one text for one lock, and every way in which it can be stale."""

import re
import tomllib
from dataclasses import replace

import pytest

from kolm_build.core.digest import Sha256
from kolm_build.core.instantiation.instantiate import step_names
from kolm_build.core.lock import check, check_inputs, parse_lock, render_lock
from kolm_build.errors import InvalidRecordError, StaleLockError, UnsupportedVersionError
from kolm_build.steps.table import STEPS
from tests.core.samples import FULL, STEPS_ONLY, TINY, digest, lock, recipe


@pytest.mark.parametrize("text", [FULL, TINY, STEPS_ONLY])
def test_a_lock_has_one_text_and_is_read_back(text):
    """LOCK-1."""
    made = lock(recipe(text))
    rendered = render_lock(made)
    assert parse_lock(rendered) == made
    assert render_lock(parse_lock(rendered)) == rendered


def test_each_digest_stands_on_a_line_of_its_own():
    """LOCK-2."""
    for line in render_lock(lock(recipe())).splitlines():
        assert len(re.findall("b3:|sha256:", line)) <= 1


def test_blocks_are_sorted_whatever_the_order_of_the_recipe():
    """LOCK-2."""
    text = render_lock(lock(recipe(STEPS_ONLY)))
    names = re.findall(r'\[\[input\]\]\nname = "(.*)"', text)
    assert names == sorted(names)
    assert len(names) == 4


def test_nothing_of_the_moment_or_the_machine_is_in_it():
    """LOCK-3."""
    text = render_lock(lock(recipe()))
    assert not re.search(r"20\d\d-\d\d|x86|amd|host|/home|/tmp", text, re.IGNORECASE)


def test_a_lock_of_its_recipe_is_accepted():
    for text in (FULL, TINY, STEPS_ONLY):
        check(recipe(text), lock(recipe(text)))


@pytest.mark.parametrize(
    ("before", "after", "section"),
    [
        ('"1e-3"', '"2e-3"', "train"),
        ("threads = 2", "threads = 3", "numerics"),
        ('k_min = "0.50"', 'k_min = "0.60"', "gate"),
        ("per_class = 40", "per_class = 41", "data"),
        ('licence = "Apache-2.0"', 'licence = "MIT"', "base"),
        ('name = "triage"', 'name = "other"', "name"),
        ('seed = "1"', 'seed = "2"', "split"),
        ('metric = "label"', "", "evaluate"),
        ("microusd_per_hour = 50_000", "microusd_per_hour = 1", "score"),
        ("[numerics]", '[environment]\ndistributions = ["torch"]\n[numerics]', "environment"),
    ],
)
def test_a_stale_lock_names_the_section_that_changed(before, after, section):
    """LOCK-4."""
    with pytest.raises(StaleLockError) as caught:
        check(recipe(FULL.replace(before, after, 1)), lock(recipe()))
    assert caught.value.where == f"recipe.{section}"
    assert caught.value.file == "kolm.lock"
    assert "kolm lock" in caught.value.advice


def test_a_new_and_a_lost_section_are_said():
    """LOCK-4."""
    more = recipe(FULL + '\n[[step]]\nname = "x"\nstep = "script"\n')
    with pytest.raises(StaleLockError, match=r"\[step\] is new"):
        check(more, lock(recipe()))
    with pytest.raises(StaleLockError, match=r"\[step\] is gone"):
        check(recipe(), lock(more))


def test_an_input_that_is_not_locked_is_named():
    made = lock(recipe())
    with pytest.raises(StaleLockError) as caught:
        check(recipe(), replace(made, inputs=made.inputs[:-1]))
    assert caught.value.where == "input data-script"
    with pytest.raises(StaleLockError, match="not locked"):
        made.input("nothing")


def test_an_input_whose_bytes_changed_is_named():
    """LOCK-7."""
    made = lock(recipe())
    check_inputs(made, {"data-script": digest("path:rows.py")})
    with pytest.raises(StaleLockError) as caught:
        check_inputs(made, {"data-script": digest("edited")})
    assert caught.value.where == "input data-script"
    assert caught.value.expected == str(digest("path:rows.py"))
    assert caught.value.actual == str(digest("edited"))


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ('kind = "weights"', 'kind = "weihgts"', "input[0].kind"),
        ('kind = "weights"', 'sort = "weights"', "input[0].kind"),
        ("files = 1", "files = 2", "input[0].file"),
        ("files = 1", "files = -1", "input[0].files"),
        ('path = "file"', 'path = "../file"', "input[0].file[0].path"),
        ("bytes = 4", "bytes = 4\nmtime = 7", "input[0].mtime"),
        ('step = "evaluate"', 'step = "dataset"', "code"),
        ('name = "data-script"', 'name = "aaa"', "input"),
        ('name = "torch"', 'name = "aaa"', "environment.distributions"),
        ('name = "torch"', 'name = "Torch"', "distribution[1].name"),
        ("threads = 2", "threads = 0", "numerics.threads"),
        ('python = "3.11.7"', "", "environment.python"),
        ('python = "3.11.7"', 'python = "3.11.7"\nhost = "a"', "environment.host"),
    ],
)
def test_a_broken_lock_is_refused_at_its_path(before, after, where):
    """LOCK-8."""
    text = render_lock(lock(recipe()))
    assert before in text
    with pytest.raises(InvalidRecordError) as caught:
        parse_lock(text.replace(before, after, 1), file="kolm.lock")
    assert (caught.value.file, caught.value.where) == ("kolm.lock", where)


def test_a_portable_lock_names_the_kernels_sources():
    """LOCK-11."""
    made = replace(lock(recipe(TINY)), kernels=Sha256.of_blob(b"kernels"))
    text = render_lock(made)
    assert f'kernels = "{made.kernels}"\n' in text.partition("[numerics]")[2]
    assert parse_lock(text) == made
    assert "kernels" not in render_lock(lock(recipe(TINY)))


def test_a_lock_of_another_class_names_no_kernels():
    """LOCK-11."""
    text = render_lock(replace(lock(recipe()), kernels=Sha256.of_blob(b"kernels")))
    with pytest.raises(InvalidRecordError) as caught:
        parse_lock(text)
    assert caught.value.where == "numerics.kernels"


def test_a_digest_of_another_spelling_is_refused():
    """DIGEST-5."""
    text = render_lock(lock(recipe()))
    for broken in (
        re.sub("b3:([0-9a-f]{64})", lambda found: "b3:" + found[1].upper(), text, count=1),
        re.sub("b3:([0-9a-f]{63})[0-9a-f]", r"b3:\1", text, count=1),
        text.replace("b3:", "blake3:", 1),
        text.replace("sha256:", "b3:", 1),
    ):
        with pytest.raises(InvalidRecordError, match="not a digest"):
            parse_lock(broken)


def test_another_version_has_an_error_of_its_own():
    """LOCK-8."""
    text = render_lock(lock(recipe())).replace("version = 2", "version = 3", 1)
    with pytest.raises(UnsupportedVersionError):
        parse_lock(text)


def test_an_input_is_locked_with_its_files():
    """LOCK-5."""
    base, *_ = tomllib.loads(render_lock(lock(recipe())))["input"]
    assert list(base) == ["name", "kind", "from", "licence", "tree", "files", "bytes", "file"]
    assert [list(file) for file in base["file"]] == [["path", "bytes", "b3", "sha256"]]


def test_an_input_of_many_files_is_locked_by_its_tree():
    """LOCK-5."""
    made = lock(recipe())
    many = replace(made.inputs[0], file_count=10_000, files=())
    folder = replace(made, inputs=(many, *made.inputs[1:]))
    assert parse_lock(render_lock(folder)) == folder


def test_code_and_every_distribution_are_pinned():
    """LOCK-6."""
    table = tomllib.loads(render_lock(lock(recipe())))
    assert {one["step"] for one in table["code"]} == set(step_names(recipe(), STEPS))
    assert set(table["environment"]) == {"python", "interpreter"}
    assert [one["name"] for one in table["distribution"]] == ["blake3", "torch"]
    assert all(one["tree"].startswith("b3:") for one in table["distribution"])
