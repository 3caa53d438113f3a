"""The tiny example in a user's home: its project, a key that the user trusts, a store."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Place:
    """A user's home, a project in it, and a store."""

    home: Path

    @property
    def project(self) -> Path:
        return self.home / "tiny"

    @property
    def artifact(self) -> Path:
        return self.project / "tiny.kolm"

    def kolm(self, *argv: str, prefix=(), **options) -> subprocess.CompletedProcess[str]:
        kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        environment = kept | {
            "HOME": str(self.home),
            "KOLM_STORE": str(self.home / "store"),
            **options.pop("environment", {}),
        }
        return subprocess.run(
            [*prefix, sys.executable, "-m", "kolm_build", *argv],
            **({"cwd": self.project} | options),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def ok(self, *argv: str, **options) -> str:
        done = self.kolm(*argv, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def replace(self, name: str, old: str, new: str) -> None:
        path = self.project / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    def id(self) -> str:
        return json.loads(self.ok("show", str(self.artifact), "--json"))["artifact"]

    @classmethod
    def copied(cls, home: Path) -> Self:
        """The example's project, copied, and nothing done with it."""
        place = cls(home)
        ignored = shutil.ignore_patterns("__*")
        shutil.copytree(ROOT / "examples" / "tiny", place.project, ignore=ignored)
        return place

    def built(self) -> Self:
        """This place with the project locked, built, and signed by a key that the user trusts."""
        self.ok("key", "new", "--unencrypted")
        self.ok("key", "trust", str(self.home / ".config/kolm/key.pem.pub"), "--name", "me")
        self.ok("lock")
        self.ok("build", "--jobs", "2")
        return self

    def check_passed_its_gate(self, adapter: str) -> None:
        """The artifact is trusted and good, its figures follow from its rows; it has `adapter`."""
        report = json.loads(self.ok("verify", str(self.artifact), "--json"))
        assert report["trusted"] is True
        assert report["adapter"]["kind"] == adapter
        assert report["kscore"]["accuracy"] >= "0.75"
        assert any(text.startswith("FLOPs and bytes") for text in report["evidenced"])

    def check_answers(self) -> None:
        """It says what it was taught; its base knows nothing."""
        wards = {"Ada reports a dry cough": "lung", "Ben reports low mood": "mind"}
        for prompt, ward in wards.items():
            assert json.loads(self.ok("run", "tiny.kolm", prompt, "--json"))["text"] == ward
