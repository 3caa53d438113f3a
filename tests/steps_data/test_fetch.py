import hashlib
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from functools import partial

import pytest

from kolm_build.errors import NetworkError
from kolm_build.steps import _download, fetch
from kolm_build.steps._download import download
from tests.steps_data.calling import run_step

DATA = hashlib.shake_256(b"file").digest(300_000)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.seen = []

    def url(self, name="data.bin"):
        return f"http://127.0.0.1:{self.server_port}/folder/{name}"


class _Handler(http.server.BaseHTTPRequestHandler):
    """Plays the server's answers one after the other; the last one is repeated."""

    def do_GET(self):
        self.server.seen.append(dict(self.headers))
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *args):
        pass


def give(handler, *, data=DATA, tag='"v1"', cut=None, ranges=True, length=True):
    """The file, from where the request asks; broken off after `cut` bytes."""
    start = 0
    asked = handler.headers.get("Range", "")
    if ranges and asked and handler.headers.get("If-Range") == tag:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    if tag:
        handler.send_header("ETag", tag)
    if length:
        handler.send_header("Content-Length", str(len(data) - start))
    handler.end_headers()
    handler.wfile.write(data[start : None if cut is None else start + cut])


def status(code):
    return lambda handler: handler.send_error(code)


def move(url):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.end_headers()

    return answer


@pytest.fixture
def serve(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(*answers):
        server = _Server(answers)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def get(server, path):
    """Download; the pauses that it made, in seconds."""
    waits = []
    download(server.url(), path, wait=waits.append, on_bytes=lambda done, total: None)
    return waits


def test_a_file_keeps_its_name(tmp_path, serve):
    """STEP-13."""
    done = run_step(fetch, tmp_path, params={"source": serve(give).url("a%20b.bin")})
    assert (done.out / "a b.bin").read_bytes() == DATA
    assert done.events[-2]["done"] == done.events[-2]["total"] == len(DATA)


def test_a_download_goes_on_where_it_broke_off(tmp_path, serve):
    """STEP-14."""
    server = serve(partial(give, cut=100_000), partial(give, cut=150_000), give)
    assert get(server, tmp_path / "f") == [1, 2]
    assert (tmp_path / "f").read_bytes() == DATA
    assert [seen.get("Range") for seen in server.seen] == [None, "bytes=100000-", "bytes=250000-"]


def test_a_download_starts_again_when_the_file_changed_meanwhile(tmp_path, serve):
    changed = DATA[::-1]
    server = serve(partial(give, cut=100_000), partial(give, data=changed, tag='"v2"'))
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == changed


@pytest.mark.parametrize("tag", ['W/"weak"', ""])
def test_a_download_starts_again_without_a_strong_tag(tmp_path, serve, tag):
    server = serve(partial(give, cut=100_000, tag=tag), partial(give, tag=tag))
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert "Range" not in server.seen[1]


def test_a_download_starts_again_where_ranges_are_not_known(tmp_path, serve):
    get(serve(partial(give, cut=100_000), partial(give, ranges=False)), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_file_of_unknown_length_is_taken(tmp_path, serve):
    get(serve(partial(give, length=False)), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(tmp_path, serve, code):
    assert get(serve(status(code), status(code), give), tmp_path / "f") == [1, 2]


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_told_at_once(tmp_path, serve, code):
    server = serve(status(code))
    refusal = run_step(fetch, tmp_path, params={"source": server.url()}).refusal
    assert (refusal["code"], refusal["file"]) == ("machine.network", server.url())
    assert refusal["actual"].startswith(str(code))
    assert refusal["advice"]
    assert len(server.seen) == 1


def test_a_server_that_always_breaks_off_is_given_up(tmp_path, serve):
    server = serve(partial(give, cut=10, tag=""))
    with pytest.raises(NetworkError) as told:
        get(server, tmp_path / "f")
    assert len(server.seen) == _download.ATTEMPTS
    assert "10 of 300000 bytes" in str(told.value)


def test_a_redirect_is_followed_but_not_to_a_file(tmp_path, serve):
    secret = tmp_path / "secret"
    secret.write_text("s")
    get(serve(move(serve(give).url())), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    with pytest.raises(NetworkError):
        get(serve(move(secret.as_uri())), tmp_path / "g")


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/passwd",
        "ftp://example.org/a",
        "http:///a",
        "https://example.org/",
        "https://example.org/a/..",
        "https://example.org/a%2fb%00",
        "https://user:word@example.org/a",
        "https://example.org/a#b",
        "https://exämple.org/a",
        "https://[::1/a",
        "pypi:name",
        "pypi:name>=1",
        "pypi:-e==1",
        "hf:name@" + "a" * 40,
        "hf:org/name@main",
        "hf:org/name@" + "A" * 40,
        "hf:org/name",
        "",
    ],
)
def test_what_is_no_pinned_public_source_is_refused(tmp_path, source):
    """STEP-11, STEP-12."""
    refusal = run_step(fetch, tmp_path, params={"source": source}).refusal
    assert (refusal["code"], refusal["where"]) == ("input.invalid", "params.source")


def test_files_are_chosen_from_a_hub_only(tmp_path):
    params = {"source": "https://example.org/a", "files": "*.json"}
    assert run_step(fetch, tmp_path, params=params).refusal["where"] == "params.files"


def wheel(folder, *, members=None, name="tiny_data", release="1.0"):
    """A wheel in `folder`, which pip takes as an index."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{release}.dist-info"
    table = {
        f"{name}/rows.jsonl": b'{"text": "a"}\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
        **(members or {}),
    }
    path = folder / f"{name}-{release}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in table.items():
            archive.writestr(member, data)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The folder of wheels that pip looks in, and nothing else of the machine's configuration."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def test_a_member_of_a_wheel_is_copied_and_nothing_is_installed(tmp_path, index):
    """STEP-15."""
    wheel(index)
    source = "pypi:tiny-data==1.0#tiny_data/rows.jsonl"
    done = run_step(fetch, tmp_path, params={"source": source})
    assert [path.name for path in done.out.iterdir()] == ["rows.jsonl"]
    assert (done.out / "rows.jsonl").read_bytes() == b'{"text": "a"}\n'


def test_without_a_member_the_wheel_itself_is_the_output(tmp_path, index):
    made = wheel(index)
    done = run_step(fetch, tmp_path, params={"source": "pypi:tiny-data==1.0"})
    assert (done.out / made.name).read_bytes() == made.read_bytes()


def test_a_member_that_is_not_there_is_told_with_what_is(tmp_path, index):
    wheel(index)
    source = "pypi:tiny-data==1.0#rows.jsonl"
    refusal = run_step(fetch, tmp_path, params={"source": source}).refusal
    assert refusal["file"] == "tiny_data-1.0-py3-none-any.whl"
    assert refusal["expected"] == "one of its files, such as tiny_data/rows.jsonl"


def test_a_release_that_is_not_there_is_told_with_those_that_are(tmp_path, index):
    """STEP-16."""
    wheel(index)
    refusal = run_step(fetch, tmp_path, params={"source": "pypi:tiny-data==2.0"}).refusal
    assert (refusal["code"], refusal["where"]) == ("input.invalid", "tiny-data==2.0")
    assert refusal["expected"] == "one of 1.0"
    assert "Traceback" not in str(refusal)


def test_an_index_that_cannot_be_reached_is_the_networks_fault(tmp_path, index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    refusal = run_step(fetch, tmp_path, params={"source": "pypi:tiny-data==1.0"}).refusal
    assert (refusal["code"], refusal["where"]) == ("machine.network", "tiny-data==1.0")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\evil", "c:/evil", "a//b"])
def test_a_wheel_with_a_hostile_name_is_refused_whole(tmp_path, name):
    from kolm_build.errors import InvalidRecordError
    from kolm_build.steps._wheel import copy_member

    made = wheel(tmp_path / "index", members={name: b"x"})
    with pytest.raises(InvalidRecordError, match="hostile name"):
        copy_member(made, "tiny_data/rows.jsonl", tmp_path)
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("at", [3, 60, -30])
def test_a_damaged_wheel_is_refused(tmp_path, at):
    from kolm_build.errors import InvalidRecordError
    from kolm_build.steps._wheel import copy_member

    made = wheel(tmp_path / "index")
    data = bytearray(made.read_bytes())
    data[at] ^= 0xFF
    made.write_bytes(data[: None if at > 0 else at])
    with pytest.raises(InvalidRecordError) as told:
        copy_member(made, "tiny_data/rows.jsonl", tmp_path)
    assert told.value.file == made.name


HUB = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "{commit}"
FILES = {{"config.json": b'{{"a": 1}}', "sub/model.safetensors": b"weights", "x.bin": b"no"}}

class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == f"/api/models/org/name/revision/{{COMMIT}}":
            names = [{{"rfilename": name}} for name in FILES]
            table = {{"sha": COMMIT, "id": "org/name", "siblings": names}}
            return self.give(json.dumps(table).encode())
        if path == f"/api/models/org/name/tree/{{COMMIT}}":
            tree = [
                {{"type": "file", "path": name, "size": len(data), "oid": "0" * 40}}
                for name, data in FILES.items()
            ]
            return self.give(json.dumps(tree).encode())
        name = path.removeprefix(f"/org/name/resolve/{{COMMIT}}/")
        if name in FILES:
            return self.give(FILES[name])
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def give(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"' + str(len(data)) * 8 + '"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(server.server_port, flush=True)
server.serve_forever()
"""

STEP = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from kolm_build.steps import fetch
from tests.steps_data.calling import run_step
done = run_step(fetch, Path({place!r}), params={params!r})
out = done.outputs["out"]
files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
print(done.status, files, done.events[-1])
"""


@pytest.fixture
def hub():
    """A small hub on the loopback; its address."""
    code = HUB.format(commit="c" * 40)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        yield f"http://127.0.0.1:{child.stdout.readline().strip()}"
        child.kill()


@pytest.mark.parametrize(
    ("source", "files", "expected"),
    [
        ("hf:org/name@" + "c" * 40, "*.json\n*.safetensors", "0 ['config.json', 'sub', 'sub/model"),
        ("hf:org/name@" + "c" * 40, "*.gguf", "'params.files'"),
        ("hf:org/other@" + "c" * 40, "", "'machine.network'"),
    ],
)
def test_a_commit_of_a_hub_is_copied(tmp_path, hub, source, files, expected):
    """STEP-17. The endpoint is read when the library is imported, so this runs in a process."""
    params = {"source": source} | ({"files": files} if files else {})
    root = os.fspath(fetch.Path(__file__).parents[2])
    code = STEP.format(root=root, place=os.fspath(tmp_path), params=params)
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert expected in done.stdout, done.stderr
