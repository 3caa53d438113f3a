"""What holds for every test."""

import signal


def pytest_configure() -> None:
    """Interrupts reach what tests start, also where a shell runs them in the background.

    Such a shell has its job ignore them, and what ignores a signal hands that down.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
