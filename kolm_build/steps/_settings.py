"""A library's settings, every one decided, in whatever release the environment has (spec/sft.md).

`_pinned.py` is about the releases that kolm is tested with. A derivation may be locked with
others: what an older release lacks or calls by another name is known here, and a release with a
setting that nobody decided on is refused before anything is computed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from importlib.metadata import version

from kolm_build.errors import MachineMismatchError

FORMER_NAMES: Mapping[str, str] = {"activation_checkpointing": "gradient_checkpointing"}
"""Settings to what older releases called them."""

NOT_YET: Mapping[str, str] = {
    "dataloader_in_order": "rows are loaded in this process",
    "kasa_config": "no such adapters are made, nor can an older release make them",
}
"""Settings that older releases do not have: what they do there is what is pinned, for a reason."""

NO_MORE: Mapping[str, object] = {
    "logging_dir": None,
    "warmup_ratio": None,  # it would overrule warmup_steps
}
"""Settings that older releases still have, pinned."""


def settings_of(
    kind: type, values: Mapping[str, object], inert: Collection[str]
) -> dict[str, object]:
    """What an object of `kind` is made with.

    Args:
        kind: A dataclass of a library, such as ``SFTConfig``.
        values: Setting to value, by the names of the releases that kolm is tested with.
        inert: Settings that cannot change a result.

    Raises:
        MachineMismatchError: This release has settings that are in none of the tables, or lacks
            some that are pinned.
    """
    known = {field.name for field in fields(kind)}
    made = {_name(name, known): value for name, value in values.items()}
    made |= {name: value for name, value in NO_MORE.items() if name in known}
    undecided = known - made.keys() - set(inert)
    lacking = made.keys() - known - NOT_YET.keys()
    if undecided or lacking:
        raise _refused(kind, undecided, lacking)
    return {name: value for name, value in made.items() if name in known}


def _name(name: str, known: Collection[str]) -> str:
    former = FORMER_NAMES.get(name, name)
    return former if name not in known and former in known else name


def _refused(kind: type, undecided: Collection[str], lacking: Collection[str]) -> Exception:
    library = kind.__module__.partition(".")[0]
    found = []
    if undecided:
        found.append("not known here: " + ", ".join(sorted(undecided)))
    if lacking:
        found.append("not there: " + ", ".join(sorted(lacking)))
    return MachineMismatchError(
        "the environment has a release whose settings this step does not know",
        where=f"{library}.{kind.__name__}",
        expected="settings that are pinned, or known to change no result",
        actual=f"{library} {version(library)}; " + "; ".join(found),
        advice=f"Lock an environment with another release of {library}, or a kolm that knows it.",
    )
