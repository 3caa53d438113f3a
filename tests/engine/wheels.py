"""Small wheels for tests, sound or with one thing wrong."""

from __future__ import annotations

import csv
import io
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

TAG = "py3-none-any"


def hashed(data: bytes) -> str:
    return "sha256=" + urlsafe_b64encode(sha256(data).digest()).rstrip(b"=").decode()


def contents(
    name: str, version: str, files: Mapping[str, bytes | str], requires=(), tag: str = TAG
) -> dict[str, bytes]:
    """Every member of a wheel, RECORD last."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    members = {
        path: data.encode() if isinstance(data, str) else data for path, data in files.items()
    }
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    members[f"{info}/METADATA"] = f"{head}\nText: of Name\n".encode()
    members[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nTag: {tag}\n".encode()
    text = io.StringIO()
    rows = [(path, hashed(data), len(data)) for path, data in members.items()]
    csv.writer(text, lineterminator="\n").writerows([*rows, (f"{info}/RECORD", "", "")])
    members[f"{info}/RECORD"] = text.getvalue().encode()
    return members


def write(folder: Path, members: Mapping[str, bytes], *, stem: str, tag: str = TAG) -> Path:
    """A wheel of these members, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in members.items():
            archive.writestr(path, data)
    return file


def wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes | str],
    requires=(),
    *,
    tag: str = TAG,
) -> Path:
    """A sound wheel."""
    members = contents(name, version, files, requires, tag)
    return write(folder, members, stem=f"{name}-{version}", tag=tag)


def line(file: Path) -> str:
    """The line of a requirements file that names the wheel `file`."""
    name, version = file.name.split("-")[:2]
    return f"{name}=={version} --hash=sha256:{sha256(file.read_bytes()).hexdigest()}\n"


def pylock(*files: Path) -> str:
    """A pylock.toml of these wheels."""
    text = 'lock-version = "1.0"\ncreated-by = "a test"\n'
    for file in files:
        name, version = file.name.split("-")[:2]
        digest = sha256(file.read_bytes()).hexdigest()
        text += (
            f'\n[[packages]]\nname = "{name}"\nversion = "{version}"\n'
            f'wheels = [{{name = "{file.name}", path = "{file.name}",'
            f' hashes = {{sha256 = "{digest}"}}}}]\n'
        )
    return text
