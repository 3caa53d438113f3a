"""Try every hostile act in the sandbox, for real, and print what stopped it.

    python tools/sandbox_table.py                 a table for people, of the user who runs it
    python tools/sandbox_table.py --markdown      the same for docs/sandbox.md

Exit status 1 if an act was not stopped, or by something else than is meant to stop it.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kolm_build.engine.builder import SandboxBuilder  # noqa: E402
from kolm_build.engine.sandbox import Surroundings, find_sandbox  # noqa: E402
from kolm_build.store.local import LocalStore  # noqa: E402
from tests.engine.hostile import Act, acts_here, attempt  # noqa: E402
from tests.engine.steps import SHAPES  # noqa: E402


def met(act: Act) -> str:
    """What `act` met, in a store of its own."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "place"
        place.mkdir()
        with LocalStore.open(Path(folder) / "store") as store:
            builder = SandboxBuilder(
                store=store,
                steps=SHAPES,
                environments=lambda _: Surroundings(),
                limits=act.limits,
            )
            return attempt(act, builder, store, place)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    line = "| {} | {} | {} |" if args.markdown else "{:<66} {:<26} {}"
    print(f"{find_sandbox().version}, Linux {os.uname().release}, {os.uname().machine}, as {user}")
    print()
    print(line.format("act", "met", "stopped by"))
    if args.markdown:
        print("|---|---|---|")
    wrong = 0
    for act in acts_here():
        answer = met(act)
        right = answer in act.met
        wrong += not right
        print(
            line.format(act.name, answer, act.by if right else "NOT STOPPED AS MEANT"), flush=True
        )
    print()
    print(f"{len(acts_here()) - wrong} of {len(acts_here())} stopped")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
