"""The nodes of rows: what the model is measured on, and the further sets."""

from __future__ import annotations

from kolm_build.core.derivation import Param
from kolm_build.core.generic_step import NodeOutput
from kolm_build.core.instantiation.draft import Draft
from kolm_build.core.instantiation.origins import add_origin
from kolm_build.core.provenance import CALL_LOG
from kolm_build.core.sections import Data, Pipeline, Split


def add_data(draft: Draft, pipeline: Pipeline) -> NodeOutput:
    """The rows that the model is measured on, and trained on where a stage has no others."""
    rows = add_origin(draft, "data", pipeline.data.origin, script="rows")
    params = _data_params(pipeline.data, pipeline.split)
    draft.add_present("dataset", "dataset", inputs={"rows": rows}, params=params)
    return NodeOutput(node="dataset", output="holdout")


def add_set(draft: Draft, split: Split, name: str, data: Data) -> None:
    """Further rows: none of them may be like a row that the model is measured on."""
    rows = add_origin(draft, f"data-{name}", data.origin, script=f"rows-{name}")
    against = draft.node(NodeOutput(node="dataset", output="compared"))
    inputs = {"rows": rows, "against": against}
    if data.provenance is not None:
        inputs[CALL_LOG] = draft.local(f"data-{name}.{CALL_LOG}")
    draft.add(f"dataset-{name}", "dataset", inputs=inputs, params=_data_params(data, split))


def _data_params(data: Data, split: Split) -> dict[str, Param]:
    return {
        **dict(data.parts),
        **({} if data.provenance is None else data.provenance.teacher.params),
        "format": data.format,
        "schema": data.schema,
        "system": data.system,
        "group": data.group,
        "split_seed": split.seed,
        "modulus": split.modulus,
        "leakage": split.leakage,
    }
