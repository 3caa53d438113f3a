"""Pictures of a training's figures: an SVG, and a line of text (CLI-33 to 35).

The same figures give the same bytes: nothing here knows a date, a font's size or a random name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from kolm_build.core.figures import Figure

MOST_POINTS = 600
"""Most points of a line; of more steps each point is the mean of a run of them."""

_WIDTH, _LEFT, _RIGHT = 720, 84, 16
_HEAD, _PANEL, _ABOVE, _BELOW = 36, 180, 28, 26
_DOTS = 60
"""Most points that get a dot each."""

_BLOCKS = "▁▂▃▄▅▆▇█"

Points = Sequence[tuple[float, float]]
"""Step, from 1, and value."""


def svg(title: str, figures: Sequence[Figure]) -> str:
    """A picture of `figures` below one another, a panel each, over the step.

    Args:
        title: What stands above.
        figures: At least one, all of the same steps.
    """
    steps = len(figures[0].values)
    height = _HEAD + _PANEL * len(figures) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 22, f"{title}: {_steps(steps)}", size=15),
    ]
    for number, figure in enumerate(figures):
        lines += _panel(figure, top=_HEAD + _PANEL * number)
    return "\n".join([*lines, "</svg>", ""])


def spark(values: Sequence[float], *, width: int = 40) -> str:
    """`values` as a line of at most `width` blocks, each the mean of a run of them."""
    means = [value for _, value in runs(values, most=width)]
    least, greatest = min(means), max(means)
    if least == greatest:
        return _BLOCKS[3] * len(means)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((one - least) / (greatest - least) * top)] for one in means)


def told(figure: Figure) -> str:
    """`figure` in a line for people: how it went, its first and last value."""
    first, last = _number(figure.values[0]), _number(figure.values[-1])
    return f"{spark(figure.values)}  {first} → {last}"


def runs(values: Sequence[float], *, most: int) -> Points:
    """`values` over their steps, in at most `most` points.

    Each point is the mean of a run of equally many steps, the last run of what is left.
    """
    size = -(-len(values) // most)
    return [
        (1 + at + (len(part) - 1) / 2, math.fsum(part) / len(part))
        for at in range(0, len(values), size)
        for part in [values[at : at + size]]
    ]


def _panel(figure: Figure, *, top: int) -> Iterator[str]:
    """One figure: its name, a frame with numbers beside it, a line."""
    points = runs(figure.values, most=MOST_POINTS)
    low, high = min(value for _, value in points), max(value for _, value in points)
    steps, bottom = len(figure.values), top + _PANEL - _BELOW
    yield _text(_LEFT, top + 20, figure.name, size=13)
    for share in (0.0, 0.5, 1.0):
        y = _at(share, bottom, top + _ABOVE)
        yield _line(_LEFT, y, _WIDTH - _RIGHT, y)
        yield _text(_LEFT - 6, y + 4, _number(low + (high - low) * share), anchor="end")
    yield _text(_LEFT, bottom + 16, "1")
    if steps > 1:
        yield _text(_WIDTH - _RIGHT, bottom + 16, f"step {steps}", anchor="end")
    places = [
        (
            _at((step - 1) / (steps - 1) if steps > 1 else 0.5, _LEFT, _WIDTH - _RIGHT),
            _at((value - low) / (high - low) if high > low else 0.5, bottom, top + _ABOVE),
        )
        for step, value in points
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>'
    for x, y in places if len(places) <= _DOTS else ():
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="#1f5fa8"/>'


def _at(share: float, start: float, end: float) -> float:
    return start + (end - start) * share


def _text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="#202020" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        'stroke="#d0d0d0" stroke-width="1"/>'
    )


def _number(value: float) -> str:
    """`value` with four digits that count."""
    return f"{value:.4g}"


def _steps(count: int) -> str:
    size = -(-count // MOST_POINTS)
    each = "" if size == 1 else f", each point the mean of {size}"
    return f"{count} optimiser step{'' if count == 1 else 's'}{each}"
