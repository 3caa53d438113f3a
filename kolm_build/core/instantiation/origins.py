"""Where models come from: a path, a fetch, a script, and the import of what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from posixpath import basename

from kolm_build.core.derivation import Input, Param
from kolm_build.core.generic_step import NodeOutput
from kolm_build.core.instantiation.draft import Draft
from kolm_build.core.sections import Base, Origin
from kolm_build.core.source import is_local


def importer_of(base: Base) -> str:
    """The step that makes a model of its files."""
    return "import-gguf" if base.format == "gguf" else "import-model"


def add_base(draft: Draft, name: str, base: Base) -> NodeOutput:
    """A model that was there before the recipe, imported as the node `name`."""
    of = draft.node(NodeOutput(node=base.of)) if base.of else None
    source = add_origin(draft, name, base.origin, script=f"{name}-source", given=of)
    params: dict[str, Param] = {} if base.dtype is None else {"dtype": base.dtype}
    return draft.add(name, importer_of(base), inputs={"source": source}, params=params)


def add_origin(
    draft: Draft, name: str, origin: Origin, *, script: str, given: Input | None = None
) -> Input:
    """What an origin gives: a local path, what is fetched, or what a script makes.

    The script makes it of either, of the model `given`, or of nothing.
    """
    if origin.source is not None:
        given = _add_source(draft, name, origin.source, origin.files)
    if origin.script is None:
        assert given is not None, "an origin has a source or a script"
        return given
    inputs: dict[str, Input] = {} if given is None else {"source": given}
    inputs["script"] = draft.local(f"{name}-script")
    params = dict(origin.args) | {"entry": basename(origin.script)}
    return draft.node(draft.add(script, "script", inputs=inputs, params=params))


def _add_source(draft: Draft, name: str, source: str, files: Sequence[str]) -> Input:
    if is_local(source):
        return draft.local(name)
    params: dict[str, Param] = {"source": source}
    if files:
        params["files"] = "\n".join(files)
    expect = draft.lock.input(name).tree
    node = draft.add(f"{name}-source", "fetch", inputs={}, params=params, expect=expect)
    return draft.node(node)
