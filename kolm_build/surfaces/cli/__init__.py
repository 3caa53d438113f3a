"""The command `kolm`: one file a command, imported only when it is the one that runs.

`entry` is the single door of the program. Nothing is imported here that `kolm --help` or a build
with nothing to do can go without.
"""

from __future__ import annotations

import signal
import sys

TYPE_CHECKING = False  # spelt here, as wherever a no-op passes: `typing` takes long to import
if TYPE_CHECKING:
    from typing import NoReturn


def entry() -> NoReturn:
    """Run `kolm` on the process's arguments and exit with its status."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run `kolm` on `argv`; the exit status of spec/cli.md."""
    from kolm_build.surfaces.cli.door import through_door
    from kolm_build.surfaces.cli.parser import dispatch
    from kolm_build.surfaces.terminal import Terminal

    terminal = Terminal.of_process()
    return through_door(lambda: dispatch(argv, terminal), argv, terminal)


def _terminate(_number: int, _frame: object) -> NoReturn:
    from kolm_build.surfaces.cli.door import TerminatedError

    raise TerminatedError
