"""One derivation at a time, made in a party's own store and signed by its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kolm_build.attest.keys import SigningKey
from kolm_build.core.derivation import ContentInput, Derivation, OutputInput, Param
from kolm_build.core.digest import Digest
from kolm_build.core.lock import Lock
from kolm_build.core.numerics import Numerics
from kolm_build.core.tree import File, Folder
from kolm_build.engine.events import OnEvent
from kolm_build.engine.scheduler import realise
from kolm_build.errors import InvalidRecordError
from kolm_build.steps.table import INHERIT, STEPS
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.building import Options, find_environments, make_builder
from kolm_build.surfaces.code import lock_code
from kolm_build.surfaces.substituting import signed
from kolm_build.surfaces.trees import Files


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a derivation gave.

    Attributes:
        derivation: The derivation; its inputs are all given by content.
        contents: The content of each output.
        claims: The claim of each output, signed by the party.
    """

    derivation: Derivation
    contents: Mapping[str, Digest]
    claims: Mapping[str, StoredRealisation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where a party builds.

    Attributes:
        store: Its own store.
        lock: Pins the environment, the numerics and the code of the steps that it names.
        key: Signs what is made.
        options: How to build.
        on_event: Told what happens.
    """

    store: LocalStore
    lock: Lock
    key: SigningKey
    options: Options
    on_event: OnEvent

    def make(
        self, name: str, step: str, inputs: Mapping[str, Digest], params: Mapping[str, Param]
    ) -> Made:
        """The outputs of `step` on `inputs`, made or found made.

        Args:
            name: The node's name, for people.
            step: The step.
            inputs: Role to the content of a tree that is in the store.
            params: The step's parameters.
        """
        derivation = self._derivation(name, step, inputs, params)
        digest = self.store.put_derivation(derivation)
        wanted = [OutputInput(derivation=digest, output=output) for output, _ in derivation.outputs]
        with find_environments(
            self.lock.environment, [self.store], options=self.options
        ) as environments:
            done = realise(
                wanted,
                derivations={digest: derivation},
                store=self.store,
                builder=make_builder(environments, self.store, options=self.options),
                on_event=self.on_event,
            )
        contents = {one.output: done.contents[one] for one in wanted}
        claims = {output: self._claim(derivation, output) for output in contents}
        return Made(derivation=derivation, contents=contents, claims=claims)

    def _derivation(
        self, name: str, step: str, inputs: Mapping[str, Digest], params: Mapping[str, Param]
    ) -> Derivation:
        spec = STEPS[step]
        code = self.lock.code.get(step) or lock_code((step,), self.store)[step]
        return Derivation(
            name=name,
            step=step,
            code=code,
            environment=self.lock.environment.digest if spec.environment else None,
            params=tuple(sorted(params.items())),
            inputs=tuple((role, ContentInput(content=inputs[role])) for role in sorted(inputs)),
            outputs=tuple((output, None) for output in sorted(spec.outputs)),
            numerics=self.lock.numerics if spec.numerics == INHERIT else Numerics(cls="exact-1"),
        )

    def _claim(self, derivation: Derivation, output: str) -> StoredRealisation:
        """The claim of an output by this party's key; what has no sandbox around it is not signed.

        Raises:
            InvalidRecordError: It was made without a sandbox.
        """
        claims = self.store.realisations(derivation.resolved_digest, output)
        own = [one for one in claims if one.envelope is not None]
        claim = own[-1] if own else claims[-1]
        if claim.circumstances.get("sandbox") == "none" and self.options.sandbox != "none":
            raise InvalidRecordError(
                "made without a sandbox, which is never signed", where=derivation.name
            )
        made = signed(claim, self.key)
        if made != claim:
            self.store.add_claim(made)
        return made

    def files(self, tree: Digest) -> dict[str, bytes]:
        """The files of a tree in the store, by relative path."""
        found: dict[str, bytes] = {}
        for name, node in self.store.tree(tree).entries:
            if isinstance(node, File):
                found[name] = self.store.read_blob(node.b3)
            elif isinstance(node, Folder):
                below = self.files(node.tree)
                found |= {f"{name}/{path}": data for path, data in below.items()}
        return found


def read_files(value: Mapping[str, object]) -> Files:
    """Files out of a message: relative paths to bytes.

    Raises:
        InvalidRecordError: A path leads elsewhere, or a value is not bytes.
    """
    made: dict[str, bytes] = {}
    for path, data in value.items():
        parts = Path(path).parts
        if type(data) is not bytes or path.startswith("/") or ".." in parts or not parts:
            raise InvalidRecordError("not a file", where=path)
        made[path] = data
    return made
