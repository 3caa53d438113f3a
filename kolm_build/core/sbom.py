"""The bill of materials of an artifact: CycloneDX 1.6 in JSON (spec/artifact.md).

A function of the lock and the model's files, with no clock and no random serial number: the
packager writes it, the verifier writes it again and compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kolm_build.core import strict_json
from kolm_build.core.manifest import ManifestMember
from kolm_build.core.story import Story, Table

PATH = "sbom/cyclonedx.json"

_MODEL = "machine-learning-model"
_ALGORITHMS = {"b3": "BLAKE3", "sha256": "SHA-256"}


def render_sbom(name: str, story: Story, model: Iterable[ManifestMember]) -> bytes:
    """The bytes of the bill of materials.

    Args:
        name: The artifact's name.
        story: Its story; the lock names the inputs and the environment.
        model: The members below ``model/``.
    """
    teachers = {f"b3:{log.hex()}": said for log, said in story.teachers.items()}
    components = [
        *(_input(entry, teachers.get(str(entry.get("tree")), {})) for entry in story.inputs),
        *(_distribution(entry) for entry in story.distributions),
        *(_file(member) for member in model),
    ]
    subject = _with_licence({"bom-ref": "artifact", "name": name, "type": _MODEL}, story.licence)
    needs = {"ref": "artifact", "dependsOn": sorted({str(each["bom-ref"]) for each in components})}
    return strict_json.dumps(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": subject},
            "components": components,
            "dependencies": [needs],
        }
    )


def _input(entry: Table, teacher: Mapping[str, str]) -> dict[str, object]:
    """A locked input; of a log of calls with what is said of the teacher that answered."""
    name = str(entry.get("name", ""))
    told = {"from": str(entry.get("from", ""))}
    told |= {f"teacher-{key}": value for key, value in teacher.items()}
    return _with_licence(
        {
            "bom-ref": f"input/{name}",
            "name": name,
            "type": _MODEL if entry.get("kind") == "weights" else "data",
            "hashes": _hashes(entry.get("tree")),
            "properties": [{"name": f"kolm:{key}", "value": text} for key, text in told.items()],
        },
        str(entry.get("licence", "")),
    )


def _distribution(entry: Table) -> dict[str, object]:
    name, version = str(entry.get("name", "")), str(entry.get("version", ""))
    return {
        "bom-ref": f"distribution/{name}",
        "name": name,
        "version": version,
        "type": "library",
        "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}",
        "hashes": _hashes(entry.get("tree")),
    }


def _file(member: ManifestMember) -> dict[str, object]:
    return {
        "bom-ref": member.path,
        "name": member.path,
        "type": "file",
        "hashes": _hashes(member.b3) + _hashes(member.sha256),
    }


def _hashes(digest: object) -> list[dict[str, str]]:
    prefix, _, digits = str(digest or "").partition(":")
    return [{"alg": _ALGORITHMS[prefix], "content": digits}] if prefix in _ALGORITHMS else []


def _with_licence(component: dict[str, object], licence: str) -> dict[str, object]:
    return component | ({"licenses": [{"license": {"name": licence}}]} if licence else {})
