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
