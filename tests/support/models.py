"""Tiny models and rows from fixed formulas; nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"


def example(path: Path) -> ModuleType:
    """The example script `path` as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_llama(folder: Path) -> Path:
    """`folder`, made, with the tiny example's model: 90,688 float32 parameters, 365 kB."""
    folder.mkdir(parents=True)
    example(TINY / "model.py").run({}, folder, {})
    return folder


def tiny_rows(folder: Path) -> Path:
    """The tiny example's rows.jsonl in `folder`, made: 128 rows, columns text and ward."""
    folder.mkdir(parents=True)
    example(TINY / "rows.py").run({}, folder, {})
    return folder / "rows.jsonl"
