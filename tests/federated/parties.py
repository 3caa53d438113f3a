"""A federation inside one process: real stores, keys and messages; training is only pretended.

`federated-seal` and `federated-aggregate` are the real steps. `federated-update` adds to the
round's adapter a pattern that its training rows decide, so that results can be worked out by hand.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from kolm_build.attest.keys import create, load
from kolm_build.core import cbor, strict_json
from kolm_build.core.digest import Digest
from kolm_build.core.federated.plan import FederationPlan
from kolm_build.core.federated.round import Opening, Round, Site
from kolm_build.core.fields import Fields
from kolm_build.core.numerics import Numerics
from kolm_build.core.realisation import Realisation
from kolm_build.core.request import StepRequest
from kolm_build.steps._entry import Events
from kolm_build.steps.federated._tensors import AdapterFolder, ServerState, write_arrays
from kolm_build.steps.table import STEPS
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.building import Options
from kolm_build.surfaces.federated.aggregator import Aggregator
from kolm_build.surfaces.federated.settings import SiteSettings
from kolm_build.surfaces.federated.site import Holdings, SiteParty
from kolm_build.surfaces.federated.wire import answered, refusal
from kolm_build.surfaces.federated.workshop import Made, Workshop
from kolm_build.surfaces.trees import keep

NAMES = ("lora_A", "lora_B")
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
SHAPES = {f"{MODULE}.lora_A.weight": (2, 3), f"{MODULE}.lora_B.weight": (4, 2)}
BASE = {"model.safetensors": b"the one base"}
ROWS = {"north": 2, "south": 3, "west": 5}
SGD = {"optimiser": "sgd", "schedule": "constant", "max_grad_norm": "0", "weight_decay": "0"}


def plan(method="fed-avg", **changes):
    value = {"v": 1, "method": method, "threshold": 2, "training": dict(SGD), **changes}
    return FederationPlan.from_value(value)


def pattern(rows: bytes, name: str):
    """What training on `rows` adds to the tensor `name`."""
    seed = int.from_bytes(sha256(rows + name.encode()).digest()[:8])
    return np.random.default_rng(seed).normal(size=SHAPES[name]).astype(np.float32)


def start_arrays():
    return {name: np.full(shape, 0.25) for name, shape in SHAPES.items()}


class Quiet(Events):
    def __init__(self):
        super().__init__(-1)

    def _send(self, event):
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class HandWorkshop(Workshop):
    """Runs steps in this process, and pretends those that compute on a model."""

    place: Path
    lie: dict = field(default_factory=dict)

    def make(self, name, step, inputs, params):
        derivation = self._derivation(name, step, inputs, params)
        digest = self.store.put_derivation(derivation)
        folder = self.place / f"{len(list(self.place.iterdir()))}-{name}"
        folder.mkdir()
        for role, content in inputs.items():
            self.store.materialise(content, folder / role)
        for output in STEPS[step].outputs:
            (folder / "outputs" / output).mkdir(parents=True)
        self._run(step, folder, inputs, params)
        contents = {}
        for output in STEPS[step].outputs:
            contents[output] = self.store.ingest(folder / "outputs" / output)
            self.store.add_realisation(
                Realisation(
                    resolved=derivation.resolved_digest, output=output, content=contents[output]
                ),
                derivation=digest,
                circumstances={"sandbox": "pretended"},
            )
        claims = {output: self._claim(derivation, output) for output in contents}
        return Made(derivation=derivation, contents=contents, claims=claims)

    def _run(self, step, folder, inputs, params):
        outputs = {name: folder / "outputs" / name for name in STEPS[step].outputs}
        if step == "federated-update":
            pretend_update(folder, outputs, params, self.lie)
        elif step == "merge":
            joint = (folder / "model" / "model.safetensors").read_bytes()
            (outputs["out"] / "model.safetensors").write_bytes(
                sha256(
                    joint + (folder / "adapter" / "adapter_model.safetensors").read_bytes()
                ).digest()
            )
        elif step == "evaluate":
            rows = len((folder / "holdout" / "holdout.jsonl").read_bytes().splitlines())
            (outputs["out"] / "summary.json").write_bytes(
                strict_json.dumps({"correct": 1, "rows": rows})
            )
        else:
            request = StepRequest(
                step=step,
                params=params,
                inputs={role: str(folder / role) for role in inputs},
                outputs={name: str(path) for name, path in outputs.items()},
                scratch=str(folder),
                numerics=Numerics(cls="exact-1"),
                events_fd=0,
            )
            module = importlib.import_module(f"kolm_build.steps.{STEPS[step].module}")
            module.run(request, Quiet())


def pretend_update(folder, outputs, params, lie):
    start = AdapterFolder.read(folder / "global")
    rows = (folder / "train" / "train.jsonl").read_bytes()
    scale = 1 + ServerState.read(folder / "state").round
    end = {name: one + scale * pattern(rows, name) for name, one in start.arrays.items()}
    if "shape" in lie:
        end = {name: one[..., :1] for name, one in end.items()}
    if params["method"] == "ffa-lora":
        end |= {name: one for name, one in start.arrays.items() if ".lora_A." in name}
    AdapterFolder(arrays=end, config=start.config).write(outputs["update"])
    if params["method"] == "scaffold":
        change = {name: pattern(rows + b"c", name) for name in SHAPES}
        write_arrays(outputs["update"] / "control.safetensors", change)
    (outputs["control"] / "control.none").write_bytes(b"")
    card = {"version": 1, "rows": lie.get("rows", rows.count(b"\n")), "steps": 1}
    (outputs["card"] / "card.json").write_bytes(strict_json.dumps(card))
    for name in ("trace", "metrics"):
        (outputs[name] / "file").write_bytes(b"x")


class LocalLink:
    """A site in this process; messages go through their encoding all the same."""

    def __init__(self, site: SiteParty):
        self.site = site
        self.dead_from: str | None = None
        self.heard: list[str] = []
        self.change = lambda kind, answer: answer
        self._answer = None

    @property
    def name(self):
        return self.site.name

    def send(self, kind, **body):
        self.heard.append(kind)
        if self.dead_from == kind:
            self.dead_from = "*"
        message = Fields(cbor.decode(cbor.encode({"kind": kind, **body})))
        self._answer = None
        if self.dead_from == "*":
            return
        from kolm_build.errors import KolmError

        try:
            self._answer = self.change(kind, dict(self.site.handle(message)))
        except KolmError as error:
            self._answer = refusal(error)

    def receive(self):
        from kolm_build.errors import RoundError

        if self._answer is None:
            raise RoundError("the site is gone", where=self.name)
        return answered(Fields(cbor.decode(cbor.encode(self._answer))), self.name)


class Federation:
    """An aggregator and sites below one folder.

    Args:
        root: Where their folders go.
        made: The plan.
        rows: Site to its number of training rows.
    """

    def __init__(self, root: Path, made: FederationPlan, rows=None):
        self.root, self.plan = root, made
        self.rows = rows or ROWS
        self.keys = {}
        for name in (*self.rows, "aggregator"):
            (root / name / "steps").mkdir(parents=True)
            create(root / name / "key.pem", passphrase=None, unencrypted=True)
            self.keys[name] = load(root / name / "key.pem", passphrase=None)
        self.peers = {name: self.keys[name].public for name in self.rows}
        self.sites = {name: self.make_site(name) for name in self.rows}
        self.links = {name: LocalLink(site) for name, site in self.sites.items()}
        self.aggregator = self.make_aggregator()

    def workshop(self, name, lie=None):
        lock = SimpleNamespace(
            environment=SimpleNamespace(digest=Digest(bytes(32))),
            code={step: Digest(sha256(step.encode()).digest()) for step in STEPS},
            numerics=Numerics(cls="portable-1"),
        )
        return HandWorkshop(
            store=LocalStore.open(self.root / name / "store"),
            lock=lock,
            key=self.keys[name],
            options=Options(),
            on_event=lambda event: None,
            place=self.root / name / "steps",
            lie=lie or {},
        )

    def make_site(self, name, *, base=None, peers=None, lie=None, say=None):
        workshop = self.workshop(name, lie)
        rows = rows_of(name, self.rows[name])
        holdings = Holdings(
            base=keep(base or BASE, workshop.store),
            train=keep({"train.jsonl": rows}, workshop.store),
            holdout=keep({"holdout.jsonl": b"{}\n" * 4}, workshop.store),
            rows=say or self.rows[name],
        )
        settings = SiteSettings(
            name=name,
            aggregator=self.keys["aggregator"].public,
            peers=peers or self.peers,
            evaluate=(),
        )
        return SiteParty(
            settings=settings,
            holdings=holdings,
            workshop=workshop,
            memory=self.root / name / "memory",
        )

    def make_aggregator(self, **changes):
        workshop = self.workshop("aggregator")
        folder = self.root / "aggregator" / "start"
        for name in ("adapter", "state"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if not (folder / "state" / "state.json").exists():
            AdapterFolder(arrays=start_arrays(), config=CONFIG).write(folder / "adapter")
            ServerState(round=0, arrays={}).write(folder / "state")
        start = {
            name: {path.name: path.read_bytes() for path in (folder / name).iterdir()}
            for name in ("adapter", "state")
        }
        return Aggregator(
            workshop=workshop,
            plan=self.plan,
            peers=self.peers,
            base=keep(BASE, workshop.store),
            start=start,
            memory=self.root / "aggregator" / "memory",
            **changes,
        )

    def replace(self, name, **how):
        """Put another site in a site's place."""
        self.links[name] = LocalLink(self.make_site(name, **how))

    def round(self):
        return self.aggregator.round(self.links)

    def adapter(self, told):
        """The new adapter's tensors."""
        folder = self.root / f"adapter-{len(list(self.root.iterdir()))}"
        self.aggregator._workshop.store.materialise(told.adapter, folder)
        return AdapterFolder.read(folder).arrays

    def aggregator_bytes(self):
        """Every byte below the aggregator's store."""
        store = self.root / "aggregator" / "store"
        return b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())


def rows_of(name, count):
    """Training rows that nobody else may see."""
    lines = [json.dumps({"secret": f"row {at} of {name}"}) for at in range(count)]
    return "".join(f"{line}\n" for line in lines).encode()


def record(made=None, *, rows=None, number=1):
    """A round's record with keys that are only pretended."""
    rows = ROWS if rows is None else rows
    opening = Opening(
        number=number,
        nonce=b"n" * 32,
        previous=None if number == 1 else Digest(b"p" * 32),
        base=Digest(b"b" * 32),
        adapter=Digest(b"a" * 32),
        state=Digest(b"s" * 32),
        plan=made or plan(),
    )
    return Round(opening=opening, sites=tuple(site(name, count) for name, count in rows.items()))


def site(name, rows):
    def key(what):
        return sha256(f"{what} of {name}".encode()).digest()

    return Site(
        name=name,
        key=key("key"),
        rows=rows,
        agreement=key("agreement"),
        mask=key("mask"),
        commitment=key("commitment"),
    )


def random_nonce():
    return os.urandom(32)
