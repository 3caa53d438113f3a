"""A safetensors file mapped into memory where it lies, alone or inside an artifact."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kolm_build.core.safetensors import PREFIX_BYTES, Header, header_length, parse_header
from kolm_build.errors import InvalidRecordError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedFile:
    """A safetensors file in memory.

    Attributes:
        header: What the file says of its tensors.
        pages: The mapped file; writing copies a page and never reaches the file.
        data_start: Where the tensors' bytes start in it.
    """

    header: Header
    pages: mmap.mmap
    data_start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedTensor:
    """A tensor of a mapped file.

    Attributes:
        dtype: Its name in the file's header.
        shape: Its sizes.
        data: Its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    @property
    def address(self) -> int:
        """Where it lies in memory."""
        return int(self.data.ctypes.data)


def map_file(path: Path, *, offset: int = 0, size: int | None = None) -> MappedFile:
    """The `size` bytes at `offset` of `path`, mapped; the whole file where not said.

    Raises:
        InvalidRecordError: It is not a strict safetensors file.
    """
    size = path.stat().st_size - offset if size is None else size
    try:
        with path.open("rb") as file:
            # Copy on write, because torch has no read-only tensors.
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        _check_end(offset + size, len(pages))
        length = header_length(pages[offset : offset + PREFIX_BYTES], size)
        start = offset + PREFIX_BYTES
        header = parse_header(pages[start : start + length], size)
    except ValueError:  # an empty file cannot be mapped
        raise InvalidRecordError("an empty file", file=str(path)) from None
    except InvalidRecordError as error:
        raise error.in_file(str(path)) from None
    return MappedFile(header=header, pages=pages, data_start=offset + header.data_start)


def _check_end(end: int, size: int) -> None:
    """Refuse a file that has become shorter since its sizes were read: tensors would lie beyond."""
    if end > size:
        raise InvalidRecordError(
            "the file has become shorter", expected=f"{end} bytes", actual=f"{size} bytes"
        )


def mapped_tensors(file: MappedFile) -> Mapping[str, MappedTensor]:
    """The tensors of `file`, by name, in its order. They share its pages."""
    whole = np.frombuffer(file.pages, dtype=np.uint8)
    return {
        one.name: MappedTensor(
            dtype=one.dtype,
            shape=one.shape,
            data=whole[file.data_start + one.begin : file.data_start + one.end],
        )
        for one in file.header.tensors
    }
