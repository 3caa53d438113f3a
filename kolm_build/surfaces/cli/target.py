"""What is said of the device that a model is for, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from argparse import Namespace

    from kolm_build.core.derivation import OutputInput
    from kolm_build.core.digest import Digest
    from kolm_build.core.forecast import Forecast
    from kolm_build.core.instantiation.instance import Instance
    from kolm_build.engine.scheduler import Realised
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.building import Prepared
    from kolm_build.surfaces.project import Project


class Instantiated(Protocol):
    """A project and its derivations."""

    @property
    def project(self) -> Project:
        """The project."""

    @property
    def instance(self) -> Instance:
        """Its derivations."""


def forecast_for(
    args: Namespace,
    of: Instantiated,
    contents: Callable[[OutputInput], Digest | None],
    store: LocalStore,
) -> Forecast | None:
    """What the model needs on the device of `args`; None where no model of its shape is here."""
    from kolm_build.surfaces.forecasting import forecast_of, target_of

    recipe = of.project.recipe
    return forecast_of(recipe, of.instance, store, contents, target_of(args.target, recipe))


def say_forecast(args: Namespace, found: Forecast | None, terminal: Terminal) -> None:
    """Tell it: an event, or lines for people."""
    if args.json:
        terminal.give({"event": "forecast", **forecast_value(found)})
        return
    if found is None:
        terminal.say("whether it fits is not known before the base is built: `kolm build base`")
        return
    for line in found.lines():
        terminal.say(line)


def forecast_value(found: Forecast | None) -> Mapping[str, object]:
    """The forecast as a JSON object; ``fits`` is null where it is not known."""
    return {"fits": None} if found is None else found.to_value()


def check_target(
    args: Namespace,
    prepared: Prepared,
    make: Callable[[Mapping[str, OutputInput]], Realised],
    store: LocalStore,
    terminal: Terminal,
) -> None:
    """Tell whether the model will fit, and refuse to build it where it will not.

    The base is made first if no model of that shape is here: nobody says before how large it is.

    Raises:
        DoesNotFitError: It needs more memory than the device has.
    """
    from kolm_build.surfaces.building import planned
    from kolm_build.surfaces.forecasting import models

    known = planned(prepared, prepared.instance.targets, store, check=False).contents.get
    found = forecast_for(args, prepared, known, store)
    if found is None:
        *_, base = models(prepared.instance)
        found = forecast_for(args, prepared, make({"base": base}).contents.get, store)
    assert found is not None, "a model that was just built is there"
    say_forecast(args, found, terminal)
    found.check()
