"""Three builders with a store, a key and a cache each, a log, and a reader who built nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kolm_build.attest.keys import PublicKey, SigningKey
from kolm_build.core.digest import Digest
from kolm_build.store.local import LocalStore
from kolm_build.store.remote.folder import FolderPlace
from kolm_build.store.remote.place import Limits
from kolm_build.store.remote.publish import Publisher, read_claims
from kolm_build.surfaces.substituting import signed
from tests.e2e.conftest import Answer, Project

BUILDERS = ("ann", "ben", "cat")
LOG = "log"
JANUARY, FEBRUARY, MARCH = (f"2026-0{month}-01T00:00:00Z" for month in (1, 2, 3))


@dataclass(frozen=True)
class Parties:
    """Them, below a folder.

    Attributes:
        project: The project that all of them have.
        folder: Where their stores, keys and caches are.
    """

    project: Project
    folder: Path

    @classmethod
    def below(cls, project: Project, folder: Path) -> Parties:
        """Them, with keys that are always the same, and nothing built."""
        folder.mkdir()
        made = cls(project, folder)
        for name in (*BUILDERS, LOG):
            made.key_file(name).write_bytes(
                made._private(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            )
            made.key_file(name).chmod(0o600)
        return made

    def key_file(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def store(self, name: str) -> Path:
        return self.folder / f"{name}-store"

    def cache(self, name: str) -> str:
        return f"file://{self.folder / name}-cache"

    def key(self, name: str) -> SigningKey:
        private = self._private(name)
        return SigningKey(PublicKey(private.public_key().public_bytes_raw()), private.sign)

    @staticmethod
    def _private(name: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"-"))

    def kolm(self, name: str, *argv: str) -> Answer:
        """`kolm` in the store of `name`."""
        return self.project.kolm(*argv, "--store", str(self.store(name)))

    def ok(self, name: str, *argv: str) -> Answer:
        """The same, which must end well."""
        answer = self.kolm(name, *argv)
        assert answer.status == 0, answer
        return answer

    def builds(self, name: str) -> None:
        """One of them builds, and publishes to its cache."""
        self.ok(name, "build", "--no-sign")
        self.publishes(name)

    def commits(self, name: str, time: str) -> None:
        """One of them rebuilds and commits to `top`; the log sees the commitment at `time`."""
        folder, key = self.folder / f"{name}-commitments", ("--key", str(self.key_file(name)))
        self.ok(name, "build", "--no-sign")
        self.project.ok("rebuild", "--attest", *key, "--against", str(self.store(name)))
        self.ok(name, "claim", "commit", "-o", str(folder), *key, "top")
        (file,) = folder.iterdir()
        log = ("--key", str(self.key_file(LOG)), "--time", time)
        self.ok(LOG, "claim", "witness", *log, "--file", str(file))
        (seen,) = folder.glob("*.witness.json")
        self.ok(name, "claim", "add", "--file", str(seen), "top")

    def copies(self, name: str, source: str) -> None:
        """One of them copies what another published, and publishes it."""
        trust = self.trust(threshold=1)
        self.ok(name, "copy", "--from", self.cache(source), "--trust", str(trust))
        self.publishes(name)

    def publishes(self, name: str) -> None:
        self.ok(name, "copy", "--to", self.cache(name), "--key", str(self.key_file(name)))

    def content(self, name: str, node: str = "top") -> str:
        """What one of them built."""
        lines = self.ok(name, "build", node, "--json", "--no-sign").out.splitlines()
        return str(json.loads(lines[-1])["targets"][node])

    def lies(self, name: str, source: str, about: str = "") -> None:
        """One of them publishes signed claims of another content than the cache of `source` has.

        Args:
            name: Who lies.
            source: Whose claims are contradicted.
            about: The only content that is; all where it is empty.
        """
        with LocalStore.open(self.store(f"{name}-lie")) as store:
            (self.folder / "lie").write_text("lie")
            tree = store.ingest(self.folder / "lie")
            place, limits = FolderPlace(f"{self.folder / name}-cache"), Limits()
            publisher = Publisher(
                place, store.giver(), limits=limits, jobs=1, on_bytes=lambda *_: None
            )
            publisher.begin()
            other = Path(f"{self.folder / source}-cache", "real")
            for path in (one for one in other.rglob("*") if one.is_file()):
                resolved = Digest(bytes.fromhex(path.name))
                for claim in read_claims(FolderPlace(str(other.parent)), resolved, limits):
                    if str(claim.realisation.content) != (about or str(claim.realisation.content)):
                        continue
                    fact = replace(claim.realisation, content=tree)
                    bare = replace(claim, realisation=fact, envelope=None, evidence=())
                    publisher.claims(resolved, [signed(bare, self.key(name))])

    def trust(
        self,
        *,
        threshold: int = 2,
        claims: str = "",
        windows: Sequence[tuple[str, str]] = (),
        organisations: Sequence[tuple[str, str]] = (),
    ) -> Path:
        """A trust file of the three and the log.

        Args:
            threshold: How many builders it takes.
            claims: The lines of the table `claims`.
            windows: Name to what follows the key in its table, such as ``revoked = …``.
            organisations: Name to organisation, where it is not one's own.
        """
        lines = ["version = 2", "[threshold]", f"builder = {threshold}", "[claims]", claims]
        for name in (*BUILDERS, LOG):
            organisation = dict(organisations).get(name, f"of-{name}")
            text = f'"{self.key(name).public}"'
            if name in dict(windows):
                text = f"{{key = {text}, {dict(windows)[name]}}}"
            lines += ["[[principal]]", f'name = "{name}"', f'organisation = "{organisation}"']
            lines += [f'roles = ["{LOG if name == LOG else "builder"}"]', f"keys = [{text}]"]
        path = self.folder / "trust.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def asks(self, trust: Path, *sources: str, flags: Sequence[str] = ()) -> Answer:
        """`kolm trust top`, by a reader who hears what is in the caches of `sources`."""
        there = [text for name in sources for text in ("--from", self.cache(name))]
        return self.kolm("reader", "trust", "top", "--trust", str(trust), *there, *flags)

    def sees(self, source: str, time: str) -> None:
        """The log countersigns the claims in the cache of `source`."""
        log = ("--key", str(self.key_file(LOG)), "--time", time)
        self.ok(LOG, "claim", "witness", *log, "--at", self.cache(source))
