"""spec/lock.md: expected outputs."""

import pytest

from kolm_build.core.outputs import (
    ANY_PLATFORM,
    ExpectedOutput,
    Outputs,
    parse_outputs,
    render_outputs,
)
from kolm_build.errors import InvalidRecordError
from tests.core.samples import digest


def entry(target="package", platform="x86_64-v4/amd/none", tree="tree"):
    return ExpectedOutput(
        target=target,
        output="out",
        platform=platform,
        derivation=digest("derivation"),
        tree=digest(tree),
    )


def test_outputs_have_one_text_and_are_read_back():
    made = Outputs().with_entries([entry(), entry(target="gate", platform=ANY_PLATFORM)])
    text = render_outputs(made)
    assert parse_outputs(text) == made
    assert render_outputs(parse_outputs(text)) == text
    assert parse_outputs(render_outputs(Outputs())) == Outputs()


def test_a_newer_entry_takes_the_place_of_the_older():
    made = Outputs().with_entries([entry(tree="old")]).with_entries([entry(tree="new")])
    assert [one.tree for one in made.entries] == [digest("new")]


def test_an_expectation_is_for_one_derivation_and_platform():
    """LOCK-10."""
    made = Outputs().with_entries([entry(), entry(target="gate", platform=ANY_PLATFORM)])
    here = "x86_64-v4/amd/none"
    assert made.find("package", "out", here, digest("derivation")) == digest("tree")
    assert made.find("package", "out", here, digest("other")) is None
    assert made.find("package", "out", "aarch64/arm/none", digest("derivation")) is None
    assert made.find("gate", "out", here, digest("derivation")) == digest("tree")


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ('output = "out"', 'outputs = "out"', "output[0].output"),
        ('target = "gate"', 'target = "zz"', "output"),
        ('tree = "b3:', 'tree = "b4:', "output[0].tree"),
    ],
)
def test_a_broken_file_is_refused_at_its_path(before, after, where):
    """LOCK-8."""
    text = render_outputs(Outputs().with_entries([entry(), entry(target="gate")]))
    with pytest.raises(InvalidRecordError) as caught:
        parse_outputs(text.replace(before, after, 1))
    assert (caught.value.file, caught.value.where) == ("kolm.outputs", where)
