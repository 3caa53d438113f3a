"""`kolm completion`: scripts made from the parsers, so that they cannot fall behind them."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kolm_build.surfaces.cli.parser import Parser, parser_of
from kolm_build.surfaces.cli.table import COMMANDS
from kolm_build.surfaces.terminal import Terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What may follow a command.

    Attributes:
        path: The command, such as ``store gc``; empty for `kolm` itself.
        commands: (subcommand, summary) pairs.
        options: (option, help) pairs.
        choices: Option, or empty text for an argument, to the values it may have.
    """

    path: str
    commands: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    choices: Mapping[str, tuple[str, ...]]


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Print a script that teaches a shell to complete kolm's command lines.",
        ("kolm completion bash > ~/.local/share/bash-completion/completions/kolm", ""),
        ('kolm completion zsh > "${fpath[1]}/_kolm"', ""),
        ("kolm completion fish > ~/.config/fish/completions/kolm.fish", ""),
    )
    parser.add_argument("shell", choices=sorted(_WRITERS), help="the shell")


def run(args: Namespace, terminal: Terminal) -> int:
    """Print the script."""
    terminal.say(_WRITERS[args.shell](list(every_words())))
    return 0


def every_words() -> Iterator[Words]:
    """The words of `kolm` and of every command below it."""
    top = (("--help", "show help"), ("--version", "print the version"))
    yield Words(path="", commands=tuple(COMMANDS.items()), options=top, choices={})
    for name in COMMANDS:
        yield from _words(name, parser_of(name))


def _words(path: str, parser: argparse.ArgumentParser) -> Iterator[Words]:
    below: list[tuple[str, str, argparse.ArgumentParser]] = []
    options: list[tuple[str, str]] = []
    choices: dict[str, tuple[str, ...]] = {}
    for action in parser._actions:  # noqa: SLF001  # argparse offers no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {one.dest: one.help or "" for one in action._choices_actions}  # noqa: SLF001
            below += [(name, helps.get(name, ""), sub) for name, sub in action.choices.items()]
        else:
            names = action.option_strings[-1:]
            options += [(name, action.help or "") for name in names]
            if action.choices is not None:
                choices[names[0] if names else ""] = tuple(map(str, action.choices))
    commands = tuple((name, text) for name, text, _ in below)
    yield Words(path=path, commands=commands, options=tuple(options), choices=choices)
    for name, _, sub in below:
        yield from _words(f"{path} {name}", sub)


def _bash(table: list[Words]) -> str:
    cases = []
    for words in table:
        offered = [name for name, _ in (*words.commands, *words.options)]
        offered += words.choices.get("", ())
        cases.append(f'    "{words.path}") offered="{" ".join(offered)}" ;;')
        for option, values in words.choices.items():
            if option:
                values_text = " ".join(values)
                cases.append(f'    "{words.path} {option}") offered="{values_text}" ;;')
    return "\n".join(
        [
            "# bash completion for kolm; made by `kolm completion bash`.",
            "_kolm() {",
            "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}",
            '  local path="" offered="" index',
            "  for ((index = 1; index < COMP_CWORD; index++)); do",
            "    case ${COMP_WORDS[index]} in",
            "    -*) ;;",
            '    *) case " $(_kolm_commands "$path") " in',
            '       *" ${COMP_WORDS[index]} "*) path="${path:+$path }${COMP_WORDS[index]}" ;;',
            "       esac ;;",
            "    esac",
            "  done",
            '  offered=$(_kolm_words "$path $before")',
            '  [ -n "$offered" ] || offered=$(_kolm_words "$path")',
            '  mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$word")',
            "}",
            "_kolm_words() {",
            "  local offered",
            '  case "$1" in',
            *cases,
            "  esac",
            '  echo "$offered"',
            "}",
            "_kolm_commands() {",
            '  case "$1" in',
            *(
                f'    "{words.path}") echo "{" ".join(name for name, _ in words.commands)}" ;;'
                for words in table
                if words.commands
            ),
            "  esac",
            "}",
            "complete -o default -F _kolm kolm",
        ]
    )


def _zsh(table: list[Words]) -> str:
    cases = []
    for words in table:
        pairs = (*words.commands, *words.options, *((one, "") for one in words.choices.get("", ())))
        listed = " ".join(_quoted(f"{_escaped(name)}:{text}") for name, text in pairs)
        cases.append(f"    {_quoted(words.path)}) offered=({listed}) ;;")
    commands = [
        f"    {_quoted(words.path)}) below=({' '.join(name for name, _ in words.commands)}) ;;"
        for words in table
        if words.commands
    ]
    return "\n".join(
        [
            "#compdef kolm",
            "# zsh completion for kolm; made by `kolm completion zsh`.",
            "local path_ word",
            "local -a offered below",
            "for word in ${words[2,CURRENT-1]}; do",
            "  below=()",
            '  case "$path_" in',
            *commands,
            "  esac",
            '  (( ${below[(Ie)$word]} )) && path_="${path_:+$path_ }$word"',
            "done",
            'case "$path_" in',
            *cases,
            "esac",
            "_describe -o kolm offered",
            "_files",
        ]
    )


def _fish(table: list[Words]) -> str:
    lines = ["# fish completion for kolm; made by `kolm completion fish`."]
    for words in table:
        where = _fish_condition(words)
        for name, text in words.commands:
            lines.append(f"complete -c kolm -f -n {where} -a {name} -d {_quoted(text)}")
        for name, text in words.options:
            values = words.choices.get(name, ())
            given = f" -x -a {_quoted(' '.join(values))}" if values else ""
            flag = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            lines.append(f"complete -c kolm -n {where} {flag}{given} -d {_quoted(text)}")
        if words.choices.get(""):
            offered = _quoted(" ".join(words.choices[""]))
            lines.append(f"complete -c kolm -f -n {where} -a {offered}")
    return "\n".join(lines)


def _fish_condition(words: Words) -> str:
    if not words.path:
        return "__fish_use_subcommand"
    seen = "; and ".join(f"__fish_seen_subcommand_from {name}" for name in words.path.split())
    below = " ".join(name for name, _ in words.commands)
    return _quoted(f"{seen}; and not __fish_seen_subcommand_from {below}" if below else seen)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _escaped(text: str) -> str:
    return text.replace(":", "\\:")


_WRITERS: Mapping[str, Callable[[list[Words]], str]] = {"bash": _bash, "fish": _fish, "zsh": _zsh}
