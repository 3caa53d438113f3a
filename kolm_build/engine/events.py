"""What the engine tells its caller while it works: frozen values, rendered by the surfaces.

Every event of a node names it. `to_value` is the JSON form that `kolm build --json` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kolm_build.core.digest import Digest
from kolm_build.errors import KolmError


@dataclass(frozen=True, slots=True, kw_only=True)
class Reused:
    """The node's outputs were there already.

    Attributes:
        node: The node's name.
        contents: Output name to content.
        cut_off: The node was to be built because something above it changed, but its inputs came
            out with the same bytes: early cutoff.
    """

    node: str
    contents: Mapping[str, Digest]
    cut_off: bool = False

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        return {
            "event": "reused",
            "node": self.node,
            "contents": _texts(self.contents),
            "cut_off": self.cut_off,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Substituted:
    """The node's outputs were copied from substituters.

    Attributes:
        node: The node's name.
        contents: Output name to content.
        sources: Where they came from.
        bytes_fetched: How many bytes came.
    """

    node: str
    contents: Mapping[str, Digest]
    sources: tuple[str, ...]
    bytes_fetched: int

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        return {
            "event": "substituted",
            "node": self.node,
            "contents": _texts(self.contents),
            "sources": list(self.sources),
            "bytes": self.bytes_fetched,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SubstituterTrouble:
    """A substituter failed, or gave something wrong; the build goes on without it.

    Attributes:
        url: Its address.
        error: What is wrong.
    """

    url: str
    error: KolmError

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        return {"event": "substituter", "url": self.url, "error": self.error.to_value()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Another process is building the same thing; this one waits for `holder`."""

    node: str
    holder: str

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        return {"event": "waiting", "node": self.node, "holder": self.holder}


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A step process starts for the node."""

    node: str
    step: str
    derivation: Digest

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        return {
            "event": "started",
            "node": self.node,
            "step": self.step,
            "derivation": str(self.derivation),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The step is `done` of `total` units along; `loss` is decimal text where it trains."""

    node: str
    done: int
    total: int
    unit: str
    loss: str | None = None

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        value: dict[str, object] = {
            "event": "progress",
            "node": self.node,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
        }
        return value if self.loss is None else value | {"loss": self.loss}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A line the step wants people to see."""

    node: str
    text: str

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        return {"event": "log", "node": self.node, "text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number the step measured, as decimal text."""

    node: str
    name: str
    value: str

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        return {"event": "metric", "node": self.node, "name": self.name, "value": self.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The step ended well and its outputs are in the store.

    Attributes:
        node: The node's name.
        contents: Output name to content.
        fetched: The step had the network: its outputs came from elsewhere.
        verified: The outputs were there before and this second build gave the same bytes.
        wall_ms: How long the step process ran.
    """

    node: str
    contents: Mapping[str, Digest]
    fetched: bool
    verified: bool
    wall_ms: int

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        return {
            "event": "built",
            "node": self.node,
            "contents": _texts(self.contents),
            "fetched": self.fetched,
            "verified": self.verified,
            "wall_ms": self.wall_ms,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The node could not be built; what needs it is left alone, the rest goes on."""

    node: str
    derivation: Digest
    error: KolmError

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        return {
            "event": "failed",
            "node": self.node,
            "derivation": str(self.derivation),
            "error": self.error.to_value(),
        }


Event = (
    Reused
    | Substituted
    | SubstituterTrouble
    | Waiting
    | Started
    | Progress
    | LogLine
    | Metric
    | Built
    | Failed
)

OnEvent = Callable[[Event], None]


def _texts(contents: Mapping[str, Digest]) -> dict[str, str]:
    return {name: str(content) for name, content in contents.items()}
