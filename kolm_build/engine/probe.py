"""What the machine is and what its user set: looked at here, turned into values at once.

One of the two places that may read the environment (the other is the command line).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kolm_build.core.numerics import Platform
from kolm_build.engine.cpu import cpu_facts, cpu_kind, read_cpuinfo
from kolm_build.errors import MachineMismatchError

_NETWORK_NAMES = {
    "ALL_PROXY", "CURL_CA_BUNDLE", "HF_ENDPOINT", "HF_TOKEN", "HTTPS_PROXY", "HTTP_PROXY",
    "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE",
}  # fmt: skip

_NETWORK_FILES = (
    "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/ssl", "/etc/pki",
    "/etc/ca-certificates", "/etc/pip.conf",
)  # fmt: skip

PIP_CONFIG = "/etc/pip-user.conf"
"""Where a network step finds the user's own pip configuration."""


def probe_platform(cpuinfo: str | None = None, arch: str | None = None) -> Platform:
    """The kind of machine, as far as it can change bits.

    Args:
        cpuinfo: The text of ``/proc/cpuinfo``; read where None.
        arch: The machine's architecture; asked where None.
    """
    isa, vendor = cpu_kind(cpuinfo, arch)
    return Platform(isa=isa, vendor=vendor)


def probe_machine() -> dict[str, object]:
    """Facts about this machine for a realisation's circumstances; never hashed.

    No host name, user name or path: circumstances are published with claims.

    Raises:
        AcceleratorError: The GPUs' driver is there and does not tell what they are.
    """
    from platform import libc_ver

    from kolm_build.engine.nvml import read_devices

    facts = cpu_facts(read_cpuinfo())
    return {
        "accelerators": [accelerator.to_value() for accelerator in read_devices()],
        "cpu": facts.get("model name") or facts.get("CPU part") or "unknown",
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release,
        "libc": " ".join(libc_ver()),
        "memory_bytes": probe_memory_bytes(),
        "platform": str(probe_platform()),
        "python": _python_version(),
    }


def _python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def probe_memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_GROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
"""Where a container finds the memory of its control group, of both versions."""


def default_memory_bytes(group_limits: Sequence[str] = _GROUP_LIMITS) -> int:
    """What a step may take of memory: a sixteenth is left, so that the kernel need not kill first.

    Args:
        group_limits: Files with the limit of this process's container, where there are such.
    """
    found = [probe_memory_bytes()]
    for path in map(Path, group_limits):
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            found.append(int(path.read_text(encoding="ascii")))
    return min(found) * 15 // 16


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAccess:
    """What a step with the network sees beyond one without: policy, never hashed.

    Attributes:
        variables: Environment variables that pass through.
        paths: (path outside, path inside) pairs, read-only.
    """

    variables: Mapping[str, str]
    paths: tuple[tuple[str, str], ...]


def probe_network(environ: Mapping[str, str] | None = None) -> NetworkAccess:
    """The user's proxies, certificates, package indexes and tokens.

    Args:
        environ: The environment; the process's own where None.
    """
    environ = os.environ if environ is None else environ
    variables = {
        name: value
        for name, value in environ.items()
        if name.upper() in _NETWORK_NAMES or (name.startswith("PIP_") and name != "PIP_CONFIG_FILE")
    }
    paths = {path: path for path in _NETWORK_FILES}
    config = _pip_config(environ)
    if config is not None:
        variables["PIP_CONFIG_FILE"] = PIP_CONFIG
        paths[str(config)] = PIP_CONFIG
    for source in (Path("/etc/pip.conf"), config):
        paths |= {path: path for path in _local_indexes(source)}
    for value in variables.values():
        paths |= {path: path for path in _local_paths(value)}
    found = [(outside, inside) for outside, inside in paths.items() if Path(outside).exists()]
    return NetworkAccess(variables=variables, paths=tuple(found))


def _pip_config(environ: Mapping[str, str]) -> Path | None:
    home = Path(environ.get("HOME", "/"))
    places = (
        Path(environ.get("PIP_CONFIG_FILE", os.devnull)),
        Path(environ.get("XDG_CONFIG_HOME", home / ".config")) / "pip" / "pip.conf",
        home / ".pip" / "pip.conf",
    )
    return next((place for place in places if place.is_file()), None)


def _local_indexes(config: Path | None) -> list[str]:
    """The folders that a pip configuration names as indexes."""
    from configparser import ConfigParser, Error

    parser = ConfigParser(interpolation=None, strict=False)
    try:
        parser.read([config] if config else [], encoding="utf-8")
    except (Error, UnicodeDecodeError):
        return []  # pip itself will say what is wrong with it
    return [path for section in parser.values() for text in section.values()
            for path in _local_paths(text)]  # fmt: skip


def _local_paths(text: str) -> list[str]:
    """The absolute paths and ``file:`` addresses among the words of `text`.

    The pages of a package index called ``simple`` point to the files beside it.
    """
    from urllib.parse import unquote, urlsplit

    words = text.split()
    urls = [unquote(urlsplit(word).path) for word in words if word.startswith("file:")]
    paths = [Path(path) for path in [*urls, *words] if path.startswith("/")]
    wider = (path.parent if path.name == "simple" else path for path in paths)
    return [str(path) for path in wider if path != Path("/")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """The interpreter that runs steps: the real one, below any virtual environment.

    Attributes:
        binary: The real executable.
        prefix: The folder it is installed in.
        version: Such as ``3.11.7``.
        site: Folder of the installed distributions that steps may use.
        foreign: Folders below the prefix whose distributions steps must not see.
    """

    binary: Path
    prefix: Path
    version: str
    site: Path
    foreign: tuple[Path, ...]


_FACTS = (
    "import json, sys, sysconfig; print(json.dumps([sys.executable, sys.base_prefix,"
    " '.'.join(map(str, sys.version_info[:3])), sysconfig.get_path('purelib')]))"
)
_ASKING_S = 60.0


def probe_interpreter(program: str | Path | None = None) -> Interpreter:
    """An interpreter as it is installed here.

    Args:
        program: Its program, that of a virtual environment too; the running one where None.

    Raises:
        MachineMismatchError: It is not a Python that runs here.
    """
    import sysconfig

    if program is not None:
        return _interpreter(*_ask(program))
    return _interpreter(
        sys.executable, sys.base_prefix, _python_version(), sysconfig.get_path("purelib")
    )


def _interpreter(program: str, base_prefix: str, version: str, site: str) -> Interpreter:
    prefix = Path(base_prefix).resolve()
    lib = "lib/python" + ".".join(version.split(".")[:2])
    places = (
        f"{lib}/site-packages", f"{lib}/dist-packages", f"local/{lib}/dist-packages",
        "lib/python3/dist-packages", f"local/{lib}/site-packages",
    )  # fmt: skip
    return Interpreter(
        binary=Path(program).resolve(),
        prefix=prefix,
        version=version,
        site=Path(site),
        foreign=tuple(prefix / place for place in places if (prefix / place).is_dir()),
    )


def _ask(program: str | Path) -> list[str]:
    """What another interpreter says of itself: program, prefix, version, distributions' folder."""
    import json
    import subprocess

    try:
        done = subprocess.run(
            [str(program), "-I", "-c", _FACTS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASKING_S,
            check=False,
        )
        facts = json.loads(done.stdout) if done.returncode == 0 else None
        said = done.stderr.strip()[-200:] or f"exit status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        facts, said = None, str(error)
    if not isinstance(facts, list) or len(facts) != 4 or not all(isinstance(f, str) for f in facts):
        raise MachineMismatchError(
            "not an interpreter that runs here",
            file=str(program),
            actual=said,
            advice="Name the program of a Python, such as .venv/bin/python.",
        )
    return facts
