"""From a party's folder to a party: its project locked and built, its store open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kolm_build.attest.keys import PublicKey, load
from kolm_build.core import strict_json
from kolm_build.core.digest import Digest
from kolm_build.core.federated.plan import FederationPlan
from kolm_build.core.fields import Fields
from kolm_build.core.lock import Lock, render_lock
from kolm_build.engine.events import OnEvent
from kolm_build.errors import InvalidRecordError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.building import Options, build, prepare
from kolm_build.surfaces.federated.aggregator import Aggregator
from kolm_build.surfaces.federated.federation import AGGREGATOR, KEY, MEMORY, PROJECT, STORE
from kolm_build.surfaces.federated.settings import SiteSettings
from kolm_build.surfaces.federated.site import Holdings, SiteParty
from kolm_build.surfaces.federated.workshop import Workshop
from kolm_build.surfaces.files import write_whole
from kolm_build.surfaces.locking import Locking
from kolm_build.surfaces.project import open_project, read_lock
from kolm_build.surfaces.trees import Files

BASE, DATASET = "base", "dataset"
"""The nodes of a party's recipe that a federation uses: a model, and rows that are split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A party with its project built.

    Attributes:
        workshop: Where it builds.
        contents: The content of each output of its project, as ``node`` or ``node.output``.
    """

    workshop: Workshop
    contents: Mapping[str, Digest]

    def content(self, name: str) -> Digest:
        """The content of an output.

        Raises:
            InvalidRecordError: The project's recipe has no such node.
        """
        if name not in self.contents:
            raise InvalidRecordError(
                "the project of a party of a federation needs this node",
                file="kolm.toml",
                where=name,
                actual=", ".join(sorted(self.contents)),
            )
        return self.contents[name]


@contextmanager
def open_party(folder: Path, *, options: Options, on_event: OnEvent) -> Iterator[Party]:
    """The party in `folder`: its project is locked if it is not, and built in its own store."""
    project = open_project(folder / PROJECT, lock=None)
    with LocalStore.open(folder / STORE) as store:
        if not project.lock_file.exists():
            locking = Locking(
                project=project,
                before=None,
                update=(),
                store=store,
                options=options,
                on_event=on_event,
            )
            write_whole(project.lock_file, render_lock(locking.run()).encode())
            project = open_project(folder / PROJECT, lock=None)
        prepared = prepare(project, store)
        nodes = [node.name for node in prepared.instance.nodes.values()]
        wanted = prepared.wanted([name for name in nodes if name in (BASE, DATASET)])
        done = build(prepared, wanted, store, options=options, on_event=on_event)
        workshop = Workshop(
            store=store,
            lock=_lock(project.lock_file),
            key=load(folder / KEY, passphrase=None),
            options=options,
            on_event=on_event,
        )
        contents = {name: done.contents[one] for name, one in wanted.items()}
        yield Party(workshop=workshop, contents=contents)


def _lock(path: Path) -> Lock:
    return read_lock(path)


@contextmanager
def open_site(folder: Path, *, options: Options, on_event: OnEvent) -> Iterator[SiteParty]:
    """The site in `folder`."""
    settings = SiteSettings.read(folder)
    with open_party(folder, options=options, on_event=on_event) as party:
        report = party.workshop.files(party.content(f"{DATASET}.report"))["report.json"]
        holdings = Holdings(
            base=party.content(BASE),
            train=party.content(f"{DATASET}.train"),
            holdout=party.content(f"{DATASET}.holdout"),
            rows=_rows(report),
        )
        yield SiteParty(
            settings=settings, holdings=holdings, workshop=party.workshop, memory=folder / MEMORY
        )


def _rows(report: bytes) -> int:
    value = strict_json.loads(report)
    side = value.get("train") if isinstance(value, dict) else None
    return Fields(side).integer("rows")


@contextmanager
def open_aggregator(
    folder: Path,
    plan: FederationPlan,
    peers: Mapping[str, PublicKey],
    *,
    options: Options,
    on_event: OnEvent,
) -> Iterator[Aggregator]:
    """The aggregator whose folder is below `folder`, before its first round."""
    with open_party(folder / AGGREGATOR, options=options, on_event=on_event) as party:
        base, training = party.content(BASE), dict(plan.training)
        names = ("lora_r", "lora_alpha", "target_modules")
        params = {name: training[name] for name in names if name in training}
        seed = party.workshop.lock.numerics.seed
        made = party.workshop.make(
            "start", "federated-start", {"model": base}, params | {"seed": seed}
        ).contents
        start: dict[str, Files] = {
            name: party.workshop.files(made[name]) for name in ("adapter", "state")
        }
        yield Aggregator(
            workshop=party.workshop,
            plan=plan,
            peers=peers,
            base=base,
            start=start,
            memory=folder / AGGREGATOR / MEMORY,
        )
