"""spec/cli.md, "Figures of a training": the table as it is read, and as it is drawn."""

import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core.figures import Figure, read_figures
from kolm_build.core.plot import MOST_POINTS, runs, spark, svg, told
from kolm_build.errors import InvalidRecordError

TABLE = b"""step,loss,learning_rate,grad_norm,samples
1,1.5,0.001,2.0,1234567890123456
2,0.75,1e-05,0.5,00000000000000e1
3,1.0,0.0,-0.25,99e1000000000000
"""
SVG = "{http://www.w3.org/2000/svg}"


def figure(*values, name="loss"):
    return Figure(name=name, values=tuple(map(float, values)))


def test_columns_of_numbers_are_figures_and_a_column_of_digests_is_none():
    """CLI-33, ALG-6: digests may look like whole numbers, or have an e."""
    assert read_figures(TABLE) == (
        figure(1.5, 0.75, 1.0),
        figure(0.001, 1e-05, 0.0, name="learning_rate"),
        figure(2.0, 0.5, -0.25, name="grad_norm"),
    )


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_every_number_that_a_training_writes_is_read_back(values):
    """CLI-33, ALG-6."""
    rows = "".join(f"{step},{value!r}\n" for step, value in enumerate(values, 1))
    (found,) = read_figures(f"step,loss\n{rows}".encode())
    assert list(map(repr, found.values)) == list(map(repr, values))
    told_of = found.to_value()
    assert told_of["first"] == repr(found.values[0])
    assert told_of["last"] == repr(found.values[-1])
    assert told_of["least"] in map(repr, values)
    assert float(told_of["greatest"]) == max(values)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"step,loss\n",
        b"loss\n1.5\n",
        b"loss,step\n1,1.5\n",
        b"step,loss\n1,1.5\n3,1.0\n",
        b"step,loss\n1,1.5,2.0\n",
        b"step,loss\n1\n",
        b"\xff",
    ],
)
def test_what_is_no_such_table_is_refused(data):
    """CLI-33."""
    with pytest.raises(InvalidRecordError) as caught:
        read_figures(data)
    assert caught.value.file == "metrics.csv"


def parsed(*figures, title="train-1"):
    return ET.fromstring(svg(title, figures))


def places(line):
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def test_a_picture_has_a_line_for_each_figure_through_every_step():
    """CLI-34: the least value stands lowest, the greatest highest, steps from left to right."""
    root = parsed(figure(3, 1, 2), figure(0, 5, 10, name="reward"))
    lines = root.findall(f"{SVG}polyline")
    assert len(lines) == 2
    for line, order in zip(lines, ([1, 2, 0], [0, 1, 2]), strict=True):
        found = places(line)
        assert [x for x, _ in found] == sorted({x for x, _ in found})
        lowest_first = sorted(range(3), key=lambda at: -found[at][1])
        assert lowest_first == order
        height = max(y for _, y in found) - min(y for _, y in found)
        middle = found[order[1]][1] - min(y for _, y in found)
        assert middle == pytest.approx(height / 2, abs=0.2)
    words = [one.text for one in root.findall(f"{SVG}text")]
    assert {"loss", "reward", "3", "1", "10", "0", "step 3"} <= set(words)
    assert "train-1: 3 optimiser steps" in words


def test_a_picture_is_static_and_the_same_again():
    """CLI-34: nothing is asked of anyone, nothing runs, and there is no date."""
    figures = [figure(*(math.sin(at) for at in range(2000))), figure(*range(2000), name="a<b")]
    drawn = svg("train & co", figures)
    assert svg("train & co", figures) == drawn
    assert ET.fromstring(drawn).find(f"{SVG}title").text == "train & co"
    names = {one.tag.removeprefix(SVG) for one in ET.fromstring(drawn).iter()}
    assert names == {"svg", "title", "rect", "text", "line", "polyline"}
    assert re.findall(r"https?://\S+?\"", drawn) == ['http://www.w3.org/2000/svg"']
    assert "href" not in drawn
    assert "a&lt;b" in drawn


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0], [0.0]])
def test_one_step_or_one_value_is_drawn_in_the_middle(values):
    """CLI-34: no range to divide by."""
    (line,) = parsed(figure(*values)).findall(f"{SVG}polyline")
    assert len(places(line)) == len(values)
    assert len({y for _, y in places(line)}) == 1
    assert len(set(spark(values))) == 1


def test_of_many_steps_points_are_means_and_the_picture_says_so():
    """CLI-35."""
    values = [float(at) for at in range(2 * MOST_POINTS + 1)]
    root = parsed(figure(*values))
    (line,) = root.findall(f"{SVG}polyline")
    assert len(places(line)) == -(-len(values) // 3)
    assert "each point the mean of 3" in root.findall(f"{SVG}text")[0].text
    assert "mean" not in parsed(figure(*values[:MOST_POINTS])).findall(f"{SVG}text")[0].text


@given(st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=200), st.integers(1, 50))
def test_runs_hold_every_value_once(values, most):
    """CLI-35."""
    found = runs(values, most=most)
    size = -(-len(values) // most)
    assert len(found) == -(-len(values) // size) <= most
    sizes = [size] * (len(found) - 1) + [len(values) - size * (len(found) - 1)]
    total = sum(mean * count for (_, mean), count in zip(found, sizes, strict=True))
    assert total == pytest.approx(sum(values), abs=1e-6)


def test_a_line_of_text_goes_the_way_the_figure_went():
    """CLI-33."""
    assert spark([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert spark([2, 1]) == "█▁"
    assert len(spark(range(1000))) == 40
    assert told(figure(1.357, 0.5, 0.87481)) == "█▁▄  1.357 → 0.8748"
