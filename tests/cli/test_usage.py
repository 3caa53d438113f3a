"""Wrong command lines, with the whole of what the user reads."""

import pytest

from tests.cli.command import kolm

WRONG = {
    "biuld": "error: kolm: there is no command 'biuld'\n  Did you mean 'build'?\n",
    "frobnicate": "error: kolm: there is no command 'frobnicate'\n  Try: kolm --help\n",
    "--frob": "error: kolm: unknown option --frob\n  Try: kolm --help\n",
    "version --jsn": (
        "error: kolm version: unrecognized arguments: --jsn\n"
        "  Did you mean '--json'?\n"
        "  Try: kolm version --help\n"
    ),
    "version --js": (
        "error: kolm version: unrecognized arguments: --js\n"
        "  Did you mean '--json'?\n"
        "  Try: kolm version --help\n"
    ),
    "completion tcsh": (
        "error: kolm completion: argument shell: invalid choice: 'tcsh'"
        " (choose from 'bash', 'fish', 'zsh')\n"
        "  usage: kolm completion [-h] {bash,fish,zsh}\n"
        "  Try: kolm completion --help\n"
    ),
    "version --frobnicate": (
        "error: kolm version: unrecognized arguments: --frobnicate\n"
        "  usage: kolm version [-h] [--json]\n"
        "  Try: kolm version --help\n"
    ),
    "store gc --dryrun": (
        "error: kolm store: unrecognized arguments: --dryrun\n"
        "  Did you mean '--dry-run'?\n"
        "  Try: kolm store --help\n"
    ),
    "build --jobs": (
        "error: kolm build: argument --jobs/-j: expected one argument\n  Try: kolm build --help\n"
    ),
    "key": (
        "error: kolm key: the following arguments are required: ACTION\n"
        "  usage: kolm key [-h] ACTION ...\n"
        "  Try: kolm key --help\n"
    ),
    "key trust x": (
        "error: kolm key trust: the following arguments are required: --name\n"
        "  usage: kolm key trust [-h] --name NAME [--role {builder,evaluator,approver,log}]"
        " [--organisation NAME] [--trust FILE] KEY\n"
        "  Try: kolm key trust --help\n"
    ),
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_says_what_is_wrong_and_what_to_try(line):
    answer = kolm(*line.split())
    assert (answer.status, answer.out, answer.err) == (2, "", WRONG[line])


@pytest.mark.parametrize(
    "line", ["rebuild none.kolm", "show none.kolm", "diff none.kolm b3:x", "verify none.kolm"]
)
def test_an_artifact_that_is_not_there_is_taken_for_no_folder_and_no_node(
    line, tmp_path, monkeypatch
):
    """CLI-9: outside of a project, too."""
    monkeypatch.chdir(tmp_path)
    answer = kolm(*line.split())
    assert answer.status != 0
    assert answer.err.startswith("error: none.kolm: ")
    assert "no such file" in answer.err.lower()
    assert "kolm init" not in answer.err


@pytest.mark.parametrize("line", ["rebuild none", "build -C none", "lock -C none"])
def test_a_folder_that_is_not_there_is_told_from_one_without_a_recipe(line, tmp_path, monkeypatch):
    """CLI-9."""
    monkeypatch.chdir(tmp_path)
    answer = kolm(*line.split())
    assert answer.status == 2
    assert "no such f" in answer.err
    assert "kolm init" not in answer.err
    (tmp_path / "none").mkdir()
    assert "there is no kolm.toml here" in kolm(*line.split()).err
