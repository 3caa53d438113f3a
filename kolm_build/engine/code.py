"""Code trees: the part of this project that one step can run, and nothing else (spec/engine.md).

A step's code tree holds the step's module, every module of the project that it can import, and
`step.py`, which the engine starts. The imports are found by reading the sources, so a change to
the command line, the store or the documentation changes no derivation. A module that depends on
files beside it says so by a literal, ``CODE_DATA = ("csrc/**/*.h",)``, and brings them along.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from kolm_build.errors import InvalidRecordError

PACKAGE = "kolm_build"
STEPS = f"{PACKAGE}.steps"
DATA = "CODE_DATA"
"""A module's tuple of patterns: files below its folder that are part of its code."""

_START = '''\
"""The start of a step process: its own code tree first, then the step."""

import sys
from os.path import abspath, dirname

sys.path.insert(0, dirname(abspath(__file__)))

from {module} import main  # noqa: E402

sys.exit(main(sys.argv))
'''


def code_tree(module: str, package_root: Path) -> Mapping[str, bytes]:
    """The files of a step's code tree, by relative path.

    Args:
        module: The step's module in `kolm_build.steps`, such as ``import_gguf``.
        package_root: The folder `kolm_build` of the project.

    Raises:
        InvalidRecordError: A source cannot be parsed, or imports what is not there.
    """
    full = f"{STEPS}.{module}"
    files = {"step.py": _START.format(module=full).encode()}
    for name in sorted(_closure(full, package_root)):
        path = _source(name, package_root)
        assert path is not None  # it was read to find its imports
        for one in (path, *_data(path)):
            files[f"{PACKAGE}/{one.relative_to(package_root).as_posix()}"] = one.read_bytes()
    # The package's own module holds the version, which no step may depend on: a release that
    # changes no step rebuilds nothing.
    files[f"{PACKAGE}/__init__.py"] = b""
    return files


def _closure(start: str, root: Path) -> set[str]:
    """The modules below the package that importing `start` may import, and their packages."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in found or name == PACKAGE:
            continue
        path = _source(name, root)
        if path is None:
            raise InvalidRecordError(f"a step's code imports {name}, which is not there")
        found.add(name)
        waiting.append(name.rpartition(".")[0])
        waiting += _imports(path, root)
    return found


def _source(name: str, root: Path) -> Path | None:
    """The source of the module `name`."""
    stem = root.joinpath(*name.split(".")[1:])
    for path in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
        if path.is_file():
            return path
    return None


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise InvalidRecordError(
            "a step's code cannot be parsed", file=str(path), actual=str(error)
        ) from error


def _data(path: Path) -> Iterator[Path]:
    """The files that the source at `path` declares to depend on."""
    for node in _parsed(path).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name == DATA:
                for pattern in _patterns(value, path):
                    yield from _matching(path.parent, pattern)


def _patterns(value: ast.expr, path: Path) -> list[str]:
    """The texts that the tuple `value` lists."""
    elements = value.elts if isinstance(value, ast.Tuple) else [value]
    found = [one.value for one in elements if isinstance(one, ast.Constant)]
    texts = [one for one in found if isinstance(one, str)]
    if not isinstance(value, ast.Tuple) or len(texts) != len(elements):
        raise InvalidRecordError(
            f"{DATA} is not a tuple of texts", file=str(path), where=f"line {value.lineno}"
        )
    return texts


def _matching(folder: Path, pattern: str) -> list[Path]:
    """The files below `folder` that `pattern` matches; there must be one."""
    found = sorted(one for one in folder.glob(pattern) if one.is_file())
    if not found:
        raise InvalidRecordError(
            "a step's code depends on what is not there", file=str(folder), where=pattern
        )
    return found


def _imports(path: Path, root: Path) -> Iterator[str]:
    """The project's modules that the source at `path` names, wherever in it."""
    for node in _that_run(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and _is_ours(node.module or ""):
            yield from _from(node, path, root)


def _that_run(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of `tree` but those that only a type checker reads."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=others):
                for one in others:
                    yield from _that_run(one)
            case _:
                yield from _that_run(child)


def _from(node: ast.ImportFrom, path: Path, root: Path) -> Iterator[str]:
    """What ``from module import names`` loads: the module, and the names that are modules."""
    module = node.module or ""
    yield module
    for alias in node.names:
        name = f"{module}.{alias.name}"
        if _source(name, root) is not None:
            yield name
        elif module == PACKAGE:
            raise InvalidRecordError(
                f"a step's code may not use {name}",
                file=str(path),
                where=f"line {node.lineno}",
                advice="The project's version is no input of a build.",
            )


def _is_ours(module: str) -> bool:
    return module == PACKAGE or module.startswith(PACKAGE + ".")
