"""Where things lie below a store's root, and what makes a folder a store (spec/store.md).

No path is ever hashed, so a store can be moved, copied, or mounted read-only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from kolm_build.core.digest import Digest
from kolm_build.errors import StoreFormatError

FORMAT = "kolm-store 1\n"
FOLDERS = ("cas", "tree", "drv", "real", "log", "roots", "tmp", "trash", "locks", "env")
OBJECT_MODE = 0o444
EXECUTABLE_MODE = 0o555
BESIDE = {*FOLDERS, "README.md", ".gitignore", "format", "format.new"}


class Kind(IntEnum):
    """What an object is; the number stands in the index."""

    BLOB = 0
    TREE = 1
    DERIVATION = 2
    LOG = 3
    CLAIM = 4
    PACK = 5

    @property
    def folder(self) -> str:
        """The folder that holds the objects of this kind."""
        return _FOLDER_OF[self]


_FOLDER_OF = {
    Kind.BLOB: "cas",
    Kind.PACK: "cas",
    Kind.TREE: "tree",
    Kind.DERIVATION: "drv",
    Kind.LOG: "log",
    Kind.CLAIM: "real",
}
_FANNED = frozenset({Kind.BLOB, Kind.PACK, Kind.TREE})


class Form(IntEnum):
    """How a blob's bytes lie in the store; the number stands in the index."""

    WHOLE = 0
    JOINED = 1
    PACKED = 2


def suffix(kind: Kind, form: Form) -> str:
    """What the name of a file in `cas/` ends with."""
    return ".pack" if kind is Kind.PACK else ".join" if form is Form.JOINED else ""


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store.

    Paths are text and not `Path`: ten thousand of them are made for one large tree.

    Attributes:
        root: The store's folder.
    """

    root: str

    def path(self, kind: Kind, digest: Digest, form: Form = Form.WHOLE) -> str:
        """Where an object lies; of a packed blob, where it would lie if it were not."""
        name = digest.hex
        fan = f"{name[:2]}/" if kind in _FANNED else ""
        return f"{self.root}/{kind.folder}/{fan}{name}{suffix(kind, form)}"

    @staticmethod
    def is_fanned(kind: Kind) -> bool:
        """Whether a kind's folder has one folder for each first byte."""
        return kind in _FANNED

    def folder(self, name: str) -> str:
        """The path of one of `FOLDERS`."""
        return f"{self.root}/{name}"

    @property
    def database(self) -> str:
        """The path of the index."""
        return f"{self.root}/db.sqlite"

    @property
    def format_file(self) -> str:
        """The path of the file that says that this is a store."""
        return f"{self.root}/format"

    def is_made(self) -> bool:
        """Whether the folder is a store of the version that this program writes.

        Raises:
            StoreFormatError: It is a store of another version, or some other folder.
        """
        try:
            found = Path(self.format_file).read_text(errors="replace")
        except FileNotFoundError:
            self._check_free()
            return False
        except NotADirectoryError:
            raise StoreFormatError("a store is a folder", file=self.root) from None
        if found != FORMAT:
            raise StoreFormatError(
                "a store of another version, or no store",
                file=self.format_file,
                expected=repr(FORMAT),
                actual=repr(found[:60]),
                advice="Use the kolm that made it, or name another folder with --store.",
            )
        return True

    def is_whole(self) -> bool:
        """Whether no folder is missing: tools that copy a store may leave out empty ones."""
        fanned = {kind.folder for kind in _FANNED}
        return set(FOLDERS) <= set(os.listdir(self.root)) and all(
            len(os.listdir(self.folder(name))) >= 256 for name in fanned
        )

    def make(self) -> None:
        """Make an empty store; doing it twice, or two at once, does no harm."""
        for name in FOLDERS:
            Path(self.root, name).mkdir(parents=True, exist_ok=True)
        for name in sorted({kind.folder for kind in _FANNED}):
            for number in range(256):
                Path(self.root, name, f"{number:02x}").mkdir(exist_ok=True)

    def _check_free(self) -> None:
        try:
            names = set(os.listdir(self.root))
        except FileNotFoundError:
            return
        foreign = sorted(name for name in names - BESIDE if not name.startswith("db.sqlite"))
        if foreign:
            raise StoreFormatError(
                "the folder holds other things and is no store",
                file=self.root,
                expected="an empty folder, or one with a store's 'format' file",
                actual=", ".join(foreign[:5]),
                advice="Name an empty or a new folder with --store.",
            )
