"""The names of a substituter's files (spec/substituter.md)."""

from __future__ import annotations

from kolm_build.core.digest import Digest

FORMAT_PATH = "format"
FORMAT = b"kolm-substituter 1\n"
FOLDERS = ("cas", "pack", "tree", "drv", "real", "log")
MAX_RECORD_BYTES = 64 << 20
"""Of an inventory, a derivation, a log, or the claims on one derivation."""
MAX_PACK_BYTES = 16 << 20


def blob_path(b3: Digest) -> str:
    """Where a blob lies."""
    return _path("cas", b3)


def pack_path(b3: Digest) -> str:
    """Where a pack lies."""
    return _path("pack", b3)


def tree_path(tree: Digest) -> str:
    """Where a tree's inventory lies."""
    return _path("tree", tree)


def derivation_path(derivation: Digest) -> str:
    """Where a derivation lies."""
    return _path("drv", derivation)


def claims_path(resolved: Digest) -> str:
    """Where the claims on a resolved derivation lie."""
    return _path("real", resolved)


def log_path(log: Digest) -> str:
    """Where a log lies."""
    return _path("log", log)


def _path(folder: str, digest: Digest) -> str:
    return f"{folder}/{digest.hex[:2]}/{digest.hex}"
