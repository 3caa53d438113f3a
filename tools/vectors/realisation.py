"""Realisations."""

from kolm_build.core.digest import Digest
from kolm_build.core.realisation import Realisation
from tools.vectors._notation import record


def vectors() -> dict[str, object]:
    made = [
        Realisation(
            resolved=Digest.of_blob(f"resolved {index}".encode()),
            output=output,
            content=Digest.of_blob(f"content {index}".encode()),
        )
        for index, output in enumerate(("out", "adapter", "train"))
    ]
    return {
        "realisations": [record(one.to_value(), one.encode(), digest=one.digest) for one in made]
    }
