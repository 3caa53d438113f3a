"""The shells themselves judge the scripts, where they are installed."""

import shutil
import subprocess

import pytest

from tests.cli.command import kolm


def complete(tmp_path, line: str) -> list[str]:
    """What bash offers for the last word of `line`."""
    script = tmp_path / "kolm.bash"
    script.write_text(kolm("completion", "bash").out)
    words = line.split(" ")
    listed = " ".join(f'"{word}"' for word in words)
    program = (
        f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _kolm;"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands(tmp_path):
    assert complete(tmp_path, "kolm ve") == ["verify", "version"]


def test_bash_completes_actions_below_a_command(tmp_path):
    assert complete(tmp_path, "kolm store ") >= ["gc"]
    assert complete(tmp_path, "kolm key tr") == ["trust"]


def test_bash_completes_options_and_their_choices(tmp_path):
    assert complete(tmp_path, "kolm build --sand") == ["--sandbox"]
    assert complete(tmp_path, "kolm build --sandbox ") == ["require", "none"]
    assert complete(tmp_path, "kolm completion z") == ["zsh"]
    assert complete(tmp_path, "kolm store gc --dry") == ["--dry-run"]


@pytest.mark.parametrize(("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "-n")])
def test_every_script_is_one_that_its_shell_can_read(tmp_path, shell, check):
    text = kolm("completion", shell).out
    assert "sandbox" in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = tmp_path / "script"
    script.write_text(text)
    done = subprocess.run([shell, check, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
