"""spec/dataset.md, DATA-63: what a bill of materials tells of recorded answers."""

from kolm_build.core import strict_json
from kolm_build.core.sbom import render_sbom
from kolm_build.core.story import Story

LOG, ROWS = bytes(range(32)), bytes(range(1, 33))
LICENCE = "LicenseRef-example-terms"


def locked(name, tree, licence=""):
    return {
        "name": name,
        "kind": "data",
        "from": f"path:./{name}",
        "tree": f"b3:{tree.hex()}",
        "licence": licence,
    }


def record(**params):
    inputs = {"rows": {"content": ROWS}}
    if "provenance_vendor" in params:
        inputs["call_log"] = {"content": LOG}
    return {"step": "dataset", "params": {"schema": "answers", **params}, "inputs": inputs}


def components(*records):
    lock = {"input": [locked("data-said", ROWS), locked("data-said.call_log", LOG, LICENCE)]}
    said = strict_json.loads(render_sbom("x", Story(lock=lock, derivations=records), []))
    return {one["name"]: one for one in said["components"]}


def test_the_log_of_the_calls_says_who_answered():
    """DATA-63."""
    found = components(
        record(),
        record(
            provenance_vendor="Example Ltd",
            provenance_model="example-large-2",
            provenance_date="2026-03-31",
            provenance_licence=LICENCE,
        ),
    )
    log = found["data-said.call_log"]
    assert log["hashes"] == [{"alg": "BLAKE3", "content": LOG.hex()}]
    assert log["licenses"] == [{"license": {"name": LICENCE}}]
    assert {one["name"]: one["value"] for one in log["properties"]} == {
        "kolm:from": "path:./data-said.call_log",
        "kolm:teacher-vendor": "Example Ltd",
        "kolm:teacher-model": "example-large-2",
        "kolm:teacher-date": "2026-03-31",
        "kolm:teacher-licence": LICENCE,
    }
    assert [one["name"] for one in found["data-said"]["properties"]] == ["kolm:from"]


def test_without_recorded_answers_nothing_is_said_of_a_teacher():
    """DATA-63."""
    for one in components(record()).values():
        assert [each["name"] for each in one["properties"]] == ["kolm:from"]
