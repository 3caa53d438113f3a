"""The files of a model: a Hugging Face folder, or the same folder inside a `.kolm` artifact."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kolm_build.core import archive
from kolm_build.core.manifest import MAX_BYTES as MAX_MANIFEST_BYTES
from kolm_build.core.manifest import Manifest
from kolm_build.core.numerics import PORTABLE
from kolm_build.errors import InvalidRecordError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kolm_build.runtime.weights import Weights

WEIGHTS = "model.safetensors"
PREFIX = "model/"
MAX_SMALL_BYTES = 256 << 20
"""Most bytes of a file that is read whole: large vocabularies have tokenizers of 30 MB."""

MAX_TABLE_BYTES = 16 << 20
"""Most bytes of a file of settings: as Python's values they are many times as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A run of bytes in a file.

    Attributes:
        path: The file.
        offset: Where the run starts.
        size: Its number of bytes.
    """

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Where each file of a model lies.

    Attributes:
        source: The folder or artifact, as the user named it.
        extents: File name to place.
        numerics: The numerics class that an artifact was judged in; `portable-1` for a folder.
    """

    source: str
    extents: Mapping[str, Extent]
    numerics: str = PORTABLE

    def has(self, name: str) -> bool:
        """Whether the model has a file `name`."""
        return name in self.extents

    def read(self, name: str) -> bytes:
        """The bytes of the small file `name`.

        Raises:
            InvalidRecordError: The model has no such file, or it is too large to be what its
                name says.
        """
        return self._read(name, MAX_SMALL_BYTES)

    def _read(self, name: str, most: int) -> bytes:
        extent = self.extent(name)
        if extent.size > most:
            raise InvalidRecordError(
                "too large", file=self.source, where=name, actual=f"{extent.size} bytes"
            )
        with extent.path.open("rb") as file:
            file.seek(extent.offset)
            return file.read(extent.size)

    def table(self, name: str) -> dict[str, object]:
        """The JSON object in the file `name`.

        Raises:
            InvalidRecordError: It is missing, too large, or not a JSON object.
        """
        data = self._read(name, MAX_TABLE_BYTES)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InvalidRecordError(
                "not JSON", file=self.source, where=name, actual=str(error)[:90]
            ) from None
        if type(value) is not dict:
            raise InvalidRecordError("not a JSON object", file=self.source, where=name)
        return value

    def weights(self, name: str = WEIGHTS) -> Weights:
        """The tensors of the file `name`, by default the model's, mapped where they lie."""
        # Here, because whoever asks for other files does without torch (GEN-70).
        from kolm_build.runtime.weights import map_weights

        extent = self.extent(name)
        return map_weights(extent.path, offset=extent.offset, size=extent.size)

    def extent(self, name: str) -> Extent:
        """Where the file `name` lies.

        Raises:
            InvalidRecordError: The model has no such file.
        """
        found = self.extents.get(name)
        if found is None:
            raise InvalidRecordError(
                "the model has no such file",
                file=self.source,
                where=name,
                expected=f"config.json, tokenizer.json, tokenizer_config.json and {WEIGHTS}",
                actual=", ".join(sorted(self.extents))[:200] or "no files",
            )
        return found


def find_model(path: Path) -> ModelFiles:
    """The files of the model at `path`: a folder, or an artifact.

    An artifact's directory is parsed strictly, and once; that its bytes are the signed ones is
    for `kolm verify` to say.

    Raises:
        InvalidRecordError: `path` is neither, or an artifact whose manifest is bad.
    """
    if not path.is_dir():
        return _artifact(path)
    files = sorted(child for child in path.iterdir() if child.is_file())
    extents = {file.name: Extent(path=file, offset=0, size=file.stat().st_size) for file in files}
    return ModelFiles(source=str(path), extents=extents)


def files_in(path: Path, placed: Iterable[archive.Placed], numerics: str) -> ModelFiles:
    """The files of the model in the artifact at `path`.

    Args:
        path: The artifact.
        placed: Its members.
        numerics: The numerics class in its manifest.
    """
    extents = {
        piece.member.path.removeprefix(PREFIX): Extent(
            path=path, offset=piece.offset, size=piece.member.size
        )
        for piece in placed
        if piece.member.path.startswith(PREFIX)
    }
    return ModelFiles(source=str(path), extents=extents, numerics=numerics)


def _artifact(path: Path) -> ModelFiles:
    if not path.is_file():
        raise InvalidRecordError(
            "no such model", file=str(path), expected="a folder or an artifact"
        )
    with path.open("rb") as file:
        read = _reader(file)
        try:
            layout = archive.parse(read, os.fstat(file.fileno()).st_size)
            return files_in(path, layout.placed, _numerics(layout, read))
        except InvalidRecordError as error:
            raise error.in_file(str(path)) from None


def _numerics(layout: archive.Layout, read: archive.Read) -> str:
    place = next((one for one in layout.placed if one.member.path == archive.MANIFEST), None)
    if place is None:
        raise InvalidRecordError("an artifact without a manifest")
    data = read(place.offset, min(place.member.size, MAX_MANIFEST_BYTES + 1))
    return Manifest.decode(data).numerics


def _reader(file: BinaryIO) -> archive.Read:
    def read(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    return read
