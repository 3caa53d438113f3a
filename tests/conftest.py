"""What holds for every test."""

import signal

from hypothesis import HealthCheck, settings


def pytest_configure() -> None:
    _hear_interrupts()
    _ask_no_clock()


def _hear_interrupts() -> None:
    """Interrupts reach what tests start, also where a shell runs them in the background.

    Such a shell has its job ignore them, and what ignores a signal hands that down.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _ask_no_clock() -> None:
    """A property holds however long a machine that does other things takes to try it."""
    settings.register_profile(
        "no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("no clock")
