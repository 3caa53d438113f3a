"""Environments: taken down, found again, and shown to steps alone."""

from __future__ import annotations

import csv
import json
from base64 import urlsafe_b64encode
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from kolm_build.core.digest import Digest
from kolm_build.engine.builder import SandboxBuilder
from kolm_build.engine.environment import InstalledEnvironment, capture
from kolm_build.engine.probe import Interpreter, probe_interpreter, probe_platform
from kolm_build.errors import InvalidRecordError, MachineMismatchError
from tests.engine.steps import SHAPES, code, derivation


def install(site: Path, name: str, version: str, files: dict[str, str], requires=()) -> None:
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    lines = "".join(f"Requires-Dist: {one}\n" for one in requires)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{lines}\nLong text"
    files = files | {f"{info}/METADATA": metadata}
    rows = []
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
        hashed = urlsafe_b64encode(sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append((path, f"sha256={hashed}", str(len(text))))
    rows += [(f"{info}/RECORD", "", ""), ("../../bin/tool", "sha256=x", "1")]
    rows += [("pkg/__pycache__/x.cpython-311.pyc", "", "")]
    with (site / info / "RECORD").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


class Memo(dict):
    memo_get = dict.get
    memo_put = dict.__setitem__


@pytest.fixture
def site(tmp_path) -> Path:
    place = tmp_path / "site"
    place.mkdir()
    install(place, "alpha", "1.0", {"alpha/__init__.py": "A = 1\n"},
            ["beta>=1; python_version >= '3'", "never; python_version < '3'",
             "gamma; extra == 'more'"])  # fmt: skip
    install(place, "Beta_Lib", "2.0", {"beta.py": "B = 1\n"})
    install(place, "beta", "1.5", {"shared/beta/__init__.py": "B = 2\n"})
    install(place, "gamma", "3.0", {"shared/gamma/__init__.py": ""}, ["alpha"])
    install(place, "tool", "1.0", {"tool/__init__.py": ""})
    return place


@pytest.fixture
def interpreter(site) -> Interpreter:
    return replace(probe_interpreter(), site=site)


def test_the_closure_follows_requirements_and_markers(interpreter):
    made = capture(["alpha"], memo=Memo(), interpreter=interpreter)
    assert [(one.name, one.version) for one in made.distributions] == [
        ("alpha", "1.0"),
        ("beta", "1.5"),
    ]
    more = capture(["alpha[more]==1.0"], memo=Memo(), interpreter=interpreter)
    assert [one.name for one in more.distributions] == ["alpha", "beta", "gamma"]


def test_names_are_normalised(interpreter):
    made = capture(["BETA.lib"], interpreter=interpreter)
    assert [one.name for one in made.distributions] == ["beta-lib"]


def test_installer_notes_and_compiled_files_do_not_count(interpreter, site):
    before = capture(["alpha"], interpreter=interpreter)
    (site / "alpha-1.0.dist-info" / "INSTALLER").write_text("uv")
    (site / "alpha-1.0.dist-info" / "uv_cache.json").write_text("{}")
    (site / "alpha" / "__pycache__").mkdir()
    (site / "alpha" / "__pycache__" / "x.pyc").write_text("")
    assert capture(["alpha"], interpreter=interpreter) == before


def test_an_edited_file_is_named(interpreter, site):
    """BOX-12. A file changed after its installation MUST be found before a step runs."""
    memo = Memo()
    locked = capture(["alpha"], memo=memo, interpreter=interpreter)
    (site / "alpha" / "__init__.py").write_text("A = 2\n")
    with pytest.raises(MachineMismatchError) as caught:
        capture(["alpha"], memo=memo, interpreter=interpreter)
    assert caught.value.file == str(site / "alpha" / "__init__.py")
    found = InstalledEnvironment([locked], memo=memo, interpreter=interpreter)
    with pytest.raises(MachineMismatchError, match="is not the locked one"):
        found(locked.digest)


def test_the_authorities_of_tls_are_policy_that_no_closed_step_sees(
    store, interpreter, site, tmp_path
):
    """BOX-13."""
    install(site, "certifi", "1.0", {"certifi/__init__.py": "", "certifi/cacert.pem": "a"})
    locked = capture(["certifi"], memo=store, interpreter=interpreter)
    (site / "certifi" / "cacert.pem").write_text("a, and the authority of this network")
    assert capture(["certifi"], interpreter=interpreter) == locked
    found = InstalledEnvironment([locked], memo=store, interpreter=interpreter)
    builder = SandboxBuilder(store=store, steps=SHAPES, environments=found)
    body = """
    import certifi
    put("text", open(certifi.__path__[0] + "/cacert.pem").read() + "nothing")
    """
    drv = replace(derivation(code(store, tmp_path, body)), environment=locked.digest)
    made = builder.build(drv, drv, lambda _event: None)
    node = dict(store.tree(made.contents["out"]).entries)["text"]
    assert store.read_blob(node.b3) == b"nothing"


def test_every_difference_is_listed(interpreter, site):
    locked = capture(["alpha[more]"], interpreter=interpreter)
    install(site, "beta", "1.5", {"shared/beta/__init__.py": "B = 3\n"})
    (site / "alpha-1.0.dist-info").rename(site / "alpha-1.1.dist-info")
    with pytest.raises(MachineMismatchError) as caught:
        InstalledEnvironment([locked], interpreter=interpreter).check(locked.digest)
    assert "alpha 1.0" in caught.value.expected
    assert "alpha 1.1" in caught.value.actual
    assert "beta 1.5 b3:" in caught.value.expected
    assert "gamma" not in caught.value.expected


def test_another_interpreter_is_named(interpreter):
    locked = capture(["alpha"], interpreter=interpreter)
    other = replace(locked, python="3.11.0")
    with pytest.raises(MachineMismatchError) as caught:
        InstalledEnvironment([other], interpreter=interpreter).check(other.digest)
    assert "python 3.11.0" in caught.value.expected


def test_an_unknown_environment_is_refused(interpreter):
    with pytest.raises(MachineMismatchError, match="does not have"):
        InstalledEnvironment([], interpreter=interpreter)(Digest.of_blob(b"x"))


def test_an_editable_distribution_is_refused(interpreter, site):
    url = {"url": "file:///x", "dir_info": {"editable": True}}
    (site / "alpha-1.0.dist-info" / "direct_url.json").write_text(json.dumps(url))
    with pytest.raises(MachineMismatchError, match="editable"):
        capture(["alpha"], interpreter=interpreter)


def test_the_project_itself_is_no_distribution_of_its_environment(interpreter, site):
    install(site, "kolm-build", "0.1", {"kolm_build.py": ""}, ["alpha"])
    made = capture(["kolm-build"], interpreter=interpreter)
    assert [one.name for one in made.distributions] == ["alpha", "beta"]


@pytest.mark.parametrize(
    ("root", "said"),
    [("absent", "absent is required by the recipe"), ("alpha==2", "another version")],
)
def test_what_is_not_installed_is_named(interpreter, root, said):
    with pytest.raises(MachineMismatchError, match=said):
        capture([root], interpreter=interpreter)


def test_a_root_that_is_no_requirement_is_refused(interpreter):
    with pytest.raises(InvalidRecordError, match="not a requirement"):
        capture(["alpha = 1"], interpreter=interpreter)


def test_a_second_look_reads_no_file(interpreter, monkeypatch):
    memo = Memo()
    locked = capture(["alpha[more]"], memo=memo, interpreter=interpreter)
    monkeypatch.setattr("kolm_build.engine.installed.hash_file", None)
    monkeypatch.setattr("kolm_build.engine.environment.hash_file", None)
    assert capture(["alpha[more]"], memo=memo, interpreter=interpreter) == locked
    InstalledEnvironment([locked], memo=memo, interpreter=interpreter).check(locked.digest)


def test_a_step_imports_its_environment_and_nothing_beside_it(store, interpreter, tmp_path):
    """BOX-10. A step MUST see the distributions of its environment and no other."""
    locked = capture(["gamma", "beta-lib"], memo=store, interpreter=interpreter)
    found = InstalledEnvironment([locked], memo=store, interpreter=interpreter)
    builder = SandboxBuilder(store=store, steps=SHAPES, environments=found)
    body = """
    from importlib.metadata import distributions
    import alpha, beta, shared.beta, shared.gamma
    put("text", " ".join(sorted(one.name for one in distributions())) + str(beta.B))
    try:
        import tool
        sys.exit(1)
    except ImportError:
        pass
    """
    drv = replace(derivation(code(store, tmp_path, body)), environment=locked.digest)
    made = builder.build(drv, drv, lambda _event: None)
    node = dict(store.tree(made.contents["out"]).entries)["text"]
    assert store.read_blob(node.b3) == b"Beta_Lib alpha beta gamma1"


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ("", "x86_64"),
        ("cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3", "x86_64-v2"),
        (
            "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
            "x86_64-v3",
        ),
        (
            "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
            " avx512f avx512bw avx512cd avx512dq avx512vl avx512_bf16 amx_bf16",
            "x86_64-v4+amx_bf16+avx512_bf16",
        ),
    ],
)
def test_the_platform_names_level_and_extensions(flags, isa):
    cpuinfo = f"vendor_id\t: GenuineIntel\nflags\t\t: {flags}\n\nvendor_id\t: other\n"
    platform = probe_platform(cpuinfo, "x86_64")
    assert (platform.isa, platform.vendor, platform.accel) == (isa, "intel", "none")


def test_an_arm_machine_has_a_platform():
    cpuinfo = "processor\t: 0\nFeatures\t: fp asimd bf16 sve\nCPU implementer\t: 0x41\n"
    assert str(probe_platform(cpuinfo, "aarch64")) == "aarch64+bf16+sve/0x41/none"
