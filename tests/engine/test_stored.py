"""Environments in the store: taken in, used where nothing is installed, and never believed."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kolm_build.core.derivation import OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.environment import Distribution, Environment
from kolm_build.core.tree import Folder, Tree
from kolm_build.engine.builder import SandboxBuilder, UnsafeOpenBuilder
from kolm_build.engine.elf import Elf, read_elf
from kolm_build.engine.environment import InstalledEnvironment, capture
from kolm_build.engine.native import native_files
from kolm_build.engine.probe import probe_interpreter
from kolm_build.engine.sandbox import find_sandbox
from kolm_build.engine.site import below, record_of, site_of
from kolm_build.engine.stored import add, check_site, every, find, native_names, surroundings
from kolm_build.errors import (
    CorruptObjectError,
    MachineMismatchError,
    NoSandboxError,
    PackIncompleteError,
)
from kolm_build.store.local import LocalStore
from kolm_build.store.packer import Wanted
from kolm_build.store.packfile import PackFile
from kolm_build.store.unpacker import check_pack
from kolm_build.surfaces.environments import FoundEnvironments
from kolm_build.surfaces.packing import check_environments
from tests.engine.steps import SHAPES, code, derivation
from tests.engine.test_environment import install

BODY = """
import alpha
from importlib.metadata import distributions, files, version
put("text", " ".join([str(alpha.A), version("alpha"), str(len(files("alpha")) > 2),
    *sorted(one.name for one in distributions())]))
"""


@pytest.fixture(autouse=True)
def _uncompiled(request, monkeypatch):
    """The standard library need not be compiled for every test."""
    if "compiled" not in request.node.name:
        monkeypatch.setattr("kolm_build.engine.stored._compile", lambda *_: None)


@pytest.fixture
def interpreter(tmp_path):
    """An interpreter with a site folder of its own."""
    site = tmp_path / "site"
    site.mkdir()
    install(site, "alpha", "1.0", {"alpha/__init__.py": "A = 1\n", "alpha/data.txt": "d"}, ["beta"])
    install(site, "beta", "1.5", {"shared/beta.py": "B = 2\n"})
    return replace(probe_interpreter(), site=site)


@pytest.fixture
def nowhere(tmp_path):
    """An interpreter with nothing installed."""
    (tmp_path / "nothing").mkdir()
    return replace(probe_interpreter(), site=tmp_path / "nothing")


@pytest.fixture
def locked(interpreter):
    return capture(["alpha"], interpreter=interpreter)


@pytest.fixture
def stored(locked, store, interpreter):
    return add(locked, store, interpreter=interpreter)


def text_of(store, builder, tmp_path, environment, body=BODY):
    made = replace(derivation(code(store, tmp_path, body)), environment=environment)
    content = builder.build(made, made, lambda _: None).contents["out"]
    return store.read_blob(dict(store.tree(content).entries)["text"].b3).decode()


def builder_of(store, locked, interpreter, *, stored_only=False):
    installed = InstalledEnvironment(locked, memo=store, interpreter=interpreter)
    found = FoundEnvironments(installed, [store], stored_only=stored_only)
    return SandboxBuilder(store=store, steps=SHAPES, environments=found)


def test_the_parts_of_a_stored_environment_have_the_digests_of_the_lock(store, locked, stored):
    """ENV-1."""
    entries = dict(store.tree(stored.tree).entries)
    assert entries["interpreter"].tree == locked.interpreter
    distributions = dict(store.tree(entries["distributions"].tree).entries)
    assert {name: node.tree for name, node in distributions.items()} == {
        one.name: one.content for one in locked.distributions
    }


def test_it_is_found_by_its_digest_and_kept_from_the_collector(store, locked, stored):
    """ENV-2."""
    assert find(store, locked.digest) == stored
    assert list(every(store)) == [stored]
    assert store.collect(dry_run=True).dead == ()
    assert find(store, Digest.of_blob(b"another")) is None


def test_taking_it_in_twice_is_taking_it_in_once(store, locked, stored, interpreter):
    assert add(locked, store, interpreter=interpreter) == stored


def test_it_is_the_same_wherever_it_is_installed(locked, stored, interpreter, tmp_path):
    """ENV-3: no path, time, byte code or installer's note gets into a digest."""
    moved = tmp_path / "elsewhere" / "site"
    shutil.copytree(interpreter.site, moved)
    cache = moved / "alpha" / "__pycache__"
    cache.mkdir()
    (cache / "x.pyc").write_bytes(b"compiled")
    (moved / "alpha-1.0.dist-info" / "INSTALLER").write_text("another")
    for path in moved.rglob("*.py"):
        os.utime(path, ns=(1, 1))
    with LocalStore.open(tmp_path / "other") as other:
        assert add(locked, other, interpreter=replace(interpreter, site=moved)) == stored


def test_what_is_not_the_locked_environment_is_not_taken_in(store, locked, interpreter):
    """ENV-4."""
    (interpreter.site / "alpha" / "data.txt").write_text("e")
    with pytest.raises(MachineMismatchError, match="not what is locked"):
        add(locked, store, interpreter=interpreter)
    assert find(store, locked.digest) is None


@pytest.mark.usefixtures("stored")
def test_a_step_runs_in_it_where_nothing_is_installed(
    store, locked, interpreter, nowhere, tmp_path
):
    """ENV-5."""
    here = text_of(store, builder_of(store, [locked], interpreter), tmp_path, locked.digest)
    there = text_of(store, builder_of(store, [locked], nowhere), tmp_path, locked.digest)
    closed = builder_of(store, [locked], nowhere, stored_only=True)
    assert here == there == text_of(store, closed, tmp_path, locked.digest)
    assert here.startswith("1 1.0 True ")
    assert here.endswith(" alpha beta")


@pytest.mark.usefixtures("stored")
def test_without_a_sandbox_a_step_runs_in_it_too(store, locked, nowhere, tmp_path):
    """ENV-5."""
    installed = InstalledEnvironment([locked], memo=store, interpreter=nowhere)
    found = FoundEnvironments(installed, [store], stored_only=False)
    builder = UnsafeOpenBuilder(store=store, steps=SHAPES, environments=found)
    assert text_of(store, builder, tmp_path, locked.digest).startswith("1 1.0 True ")


def test_an_environment_for_another_architecture_is_refused(store, stored, monkeypatch):
    other = iter([Elf(machine=183, needed=(), loader=""), Elf(machine=62, needed=(), loader="")])
    monkeypatch.setattr("kolm_build.engine.stored.read_elf", lambda _: next(other))
    with pytest.raises(MachineMismatchError, match="another processor architecture"):
        surroundings(store, stored, native=False)


@pytest.mark.usefixtures("stored")
def test_two_environments_run_side_by_side(store, locked, interpreter, nowhere, tmp_path):
    """ENV-5."""
    install(interpreter.site, "alpha", "1.0", {"alpha/__init__.py": "A = 7\n"}, ["beta"])
    newer = capture(["alpha"], interpreter=interpreter)
    add(newer, store, interpreter=interpreter)
    builder = builder_of(store, [locked, newer], nowhere)
    assert text_of(store, builder, tmp_path, newer.digest).startswith("7 1.0 ")
    assert text_of(store, builder, tmp_path, locked.digest).startswith("1 1.0 ")


def test_with_the_stored_libraries_a_step_sees_nothing_of_this_machine(
    store, locked, stored, nowhere, tmp_path
):
    """ENV-6."""
    body = """
    import os
    maps = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
    put("text", " ".join(sorted(os.listdir("/")) + sorted(
        one for one in maps if not one.startswith(("/kolm/", "/lib64/")))))
    """
    builder = builder_of(store, [locked], nowhere, stored_only=True)
    seen = text_of(store, builder, tmp_path, locked.digest, body).split()
    assert seen == ["bin", "build", "dev", "etc", "kolm", "lib", "lib64", "proc", "tmp"]


def test_without_the_stored_environment_the_difference_is_told(store, locked, nowhere, tmp_path):
    for stored_only, said in ((False, "not the locked one"), (True, "not in the store")):
        builder = builder_of(store, [locked], nowhere, stored_only=stored_only)
        with pytest.raises(MachineMismatchError, match=said) as caught:
            text_of(store, builder, tmp_path, locked.digest)
        assert "kolm env add" in caught.value.advice


def test_an_unpacked_environment_that_was_touched_is_made_anew(store, stored):
    """ENV-7."""
    first = surroundings(store, stored, native=False)
    file = first.binds[0].outside / "alpha" / "__init__.py"
    before = file.stat().st_ino
    assert surroundings(store, stored, native=False) == first
    assert file.stat().st_ino == before
    file.chmod(0o644)
    file.write_text("A = 9\n")
    assert surroundings(store, stored, native=False) == first
    assert file.read_text() == "A = 1\n"
    (file.parent / "more.py").write_text("")
    surroundings(store, stored, native=False)
    assert not (file.parent / "more.py").exists()


def test_an_unpacked_environment_goes_when_its_tree_is_collected(store, locked, tmp_path, stored):
    """ENV-7."""
    place = surroundings(store, stored, native=False).binds[0].outside
    store.close()
    with LocalStore.open(tmp_path / "store") as again:
        again.collect(dry_run=False)
        assert place.exists()
        again.remove_root(locked.digest.hex)
        again.collect(dry_run=False)
        assert not place.exists()


def test_its_modules_are_compiled_once(store, stored):
    try:
        find_sandbox()
    except NoSandboxError:
        pytest.skip("no sandbox here")
    place = surroundings(store, stored, native=False).binds[0].outside
    (compiled,) = (place / "alpha" / "__pycache__").iterdir()
    data = compiled.read_bytes()
    assert int.from_bytes(data[4:8], "little") == 1  # by hash, and never compared with the source
    assert b"/kolm/site-packages/alpha/__init__.py" in data
    assert str(place).encode() not in data


def forged(store, stored):
    """`stored` with one module in its folder that no distribution has."""
    entries = dict(store.tree(stored.tree).entries)
    evil = store.put_blob(b"evil")
    site = dict(store.tree(entries["site-packages"].tree).entries)
    alpha = dict(store.tree(site["alpha"].tree).entries)
    node = replace(alpha["__init__.py"], b3=evil.b3, sha256=evil.sha256, size_bytes=4)
    site["alpha"] = Folder(tree=store.put_tree(Tree.of((alpha | {"__init__.py": node}).items())))
    entries["site-packages"] = Folder(tree=store.put_tree(Tree.of(site.items())))
    return replace(stored, tree=store.put_tree(Tree.of(entries.items())))


def test_a_folder_that_the_distributions_do_not_make_is_refused(store, stored):
    """ENV-8."""
    bad = forged(store, stored)
    with pytest.raises(CorruptObjectError, match="folder of all distributions"):
        surroundings(store, bad, native=False)
    with pytest.raises(CorruptObjectError):
        check_site(store, bad)


@pytest.mark.parametrize("is_forged", [False, True])
def test_a_pack_brings_an_environment_that_is_what_it_is_called_or_none(
    store, locked, stored, tmp_path, is_forged
):
    """PACK-22."""
    made = replace(derivation(code(store, tmp_path, BODY)), environment=locked.digest)
    wanted = Wanted(
        name="x",
        outputs={"x": OutputInput(derivation=store.put_derivation(made), output="out")},
        project=code(store, tmp_path, "project = 1"),
        environments={locked.digest: (forged(store, stored) if is_forged else stored).tree},
        without_outputs=True,
    )
    with (tmp_path / "x.kolmpack").open("wb") as out:
        store.write_pack(store.plan_pack(wanted), out.write)
    with (
        LocalStore.open(tmp_path / "other") as other,
        PackFile.open(tmp_path / "x.kolmpack") as file,
    ):
        if not is_forged:
            check_pack(file, judge=check_environments)
            other.take_pack(file, judge=check_environments)
            assert find(other, locked.digest) == stored
            return
        with pytest.raises(PackIncompleteError, match="not what it is called"):
            other.take_pack(file, judge=check_environments)
        with pytest.raises(PackIncompleteError, match="not what it is called"):
            check_pack(file, judge=check_environments)
        assert find(other, locked.digest) is None


@pytest.mark.parametrize("part", ["environment.cbor", "interpreter", "distributions", "native"])
def test_an_environment_with_another_part_is_refused(store, locked, stored, part):
    """ENV-8."""
    entries = dict(store.tree(stored.tree).entries)
    if part == "environment.cbor":
        other = store.put_blob(replace(locked, python="3.0.0").encode())
        entries[part] = replace(
            entries[part], b3=other.b3, sha256=other.sha256, size_bytes=other.size_bytes
        )
    elif part == "native":
        del entries[part]
    else:
        entries[part] = Folder(tree=store.put_tree(Tree.of([])))
    store.add_root(locked.digest.hex, trees=[store.put_tree(Tree.of(entries.items()))])
    with pytest.raises(CorruptObjectError, match="not the locked one"):
        find(store, locked.digest)


def test_two_distributions_that_overwrote_each_other_are_refused(store, tmp_path, interpreter):
    install(interpreter.site, "one", "1", {"same.py": "1"})
    one = capture(["one"], interpreter=interpreter)
    install(interpreter.site, "two", "1", {"same.py": "2"})
    two = capture(["two"], interpreter=interpreter)
    for environment in (two,):
        add(environment, store, interpreter=interpreter)
    (interpreter.site / "same.py").write_text("1")
    add(one, store, interpreter=interpreter)
    both = Environment.of(
        python=one.python,
        interpreter=one.interpreter,
        distributions=[*one.distributions, *two.distributions],
    )
    with pytest.raises(MachineMismatchError, match="two distributions have one file"):
        site_of(store, both)


def test_the_record_of_a_distribution_is_written_anew_and_right(store, locked, stored):
    site = site_of(store, locked)
    record = site.written["alpha-1.0.dist-info/RECORD"].decode()
    alpha = next(one for one in locked.distributions if one.name == "alpha")
    files = dict(below(store, alpha.content))
    assert [line.split(",")[0] for line in record.splitlines()] == sorted(files)
    assert record.encode() == record_of(files)


def test_the_libraries_that_a_process_maps_are_recorded(store, stored):
    """ENV-9."""
    names = {path for path, _ in native_names(store, stored)}
    assert "bin/sh" in names
    assert any(name.startswith("lib/libc.") for name in names)
    assert any(name.startswith("lib/ld-linux") for name in names)


def test_libraries_are_those_that_the_loader_maps():
    """ENV-9: against what the kernel says of this process."""
    interpreter = probe_interpreter()
    extension = next((interpreter.prefix / "lib").rglob("lib-dynload/_ssl*.so"), None)
    if extension is None:
        pytest.skip("this interpreter has no such module")
    import _ssl  # noqa: F401

    found = {place.name for place in native_files([interpreter.binary, extension], []).values()}
    mapped = {
        Path(line.split()[-1]).name
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "libssl" in line or "libcrypto" in line or "/libc." in line
    }
    assert mapped <= found


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"\x7fELF\2\1" + b"\xff" * 80, b"#!/bin/sh\n" * 9]
)
def test_what_is_no_elf_file_needs_nothing(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert read_elf(tmp_path / "x") is None


def test_an_unknown_distribution_is_named(store, locked, nowhere):
    extra = Distribution(name="absent", version="1", content=Digest.of_blob(b"x"))
    more = replace(locked, distributions=(extra,))
    with pytest.raises(MachineMismatchError, match="absent is not installed"):
        add(more, store, interpreter=nowhere)
