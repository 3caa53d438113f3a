"""Every command's help, word for word. `python -m tests.cli.test_help` writes the files anew."""

from pathlib import Path

import pytest

from kolm_build.surfaces.cli.completion import every_words
from kolm_build.surfaces.cli.table import COMMANDS
from tests.cli.command import kolm

GOLDEN = Path(__file__).parent / "golden"


def paths() -> list[str]:
    return [words.path for words in every_words()]


def file_of(path: str) -> Path:
    return GOLDEN / f"kolm{'-' if path else ''}{path.replace(' ', '-')}.txt"


@pytest.mark.parametrize("path", paths())
def test_the_help_of_a_command_is_what_it_was(path):
    answer = kolm(*path.split(), "--help")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == file_of(path).read_text()


@pytest.mark.parametrize("path", paths())
def test_help_is_at_most_100_columns_wide_and_says_how_it_is_used(path):
    text = file_of(path).read_text()
    assert text.startswith(f"usage: kolm {path}".rstrip())
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_shows_examples(name):
    assert "\nexamples:\n" in file_of(name).read_text()


def test_no_golden_file_is_left_from_a_command_that_is_no_more():
    assert set(GOLDEN.iterdir()) == {file_of(path) for path in paths()}


def test_help_as_a_command_is_help_as_an_option():
    assert kolm("help", "lock") == kolm("lock", "--help")
    assert kolm() == kolm("--help") == kolm("-h") == kolm("help")


if __name__ == "__main__":
    for stale in GOLDEN.iterdir():
        stale.unlink()
    for one in paths():
        file_of(one).write_text(kolm(*one.split(), "--help").out)
