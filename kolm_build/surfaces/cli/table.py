"""The commands, in the order in which people meet them. Each is a module of this package."""

from __future__ import annotations

from collections.abc import Mapping

GROUPS: Mapping[str, Mapping[str, str]] = {
    "make a model": {
        "init": "write a starter recipe",
        "lock": "pin every input of the recipe by its hash",
        "build": "make what the lock describes, or find it made",
        "get": "write what was built to a folder or file of yours",
        "copy": "copy what was built to a substituter, or from one",
        "run": "ask a built model one question",
        "federated": "train at several sites whose rows stay where they are",
    },
    "trust a model": {
        "verify": "check an artifact: its bytes, its signatures, its numbers",
        "rebuild": "build it again from nothing and compare",
        "trust": "tell whether an output may be used, and why",
        "challenge": "compare what several caches claim, without building",
        "claim": "commit to claims, or say as a log when they were seen",
        "key": "make, show and trust signing keys",
        "export": "the model for other programs; or all a rebuild needs",
        "import": "check a pack and take it into the store",
    },
    "understand a model": {
        "explain": "tell why a build would do what it would do",
        "why": "show how one node depends on another",
        "log": "print the log of a node's build",
        "show": "show a node, a digest or an artifact",
        "diff": "compare two artifacts, trees or derivations",
        "bisect": "find the step, operation and element where two trainings part",
        "algorithms": "show what a stage of a recipe can train with",
        "numerics": "show which operations give the same bits everywhere",
    },
    "keep house": {
        "env": "show and check environments, and take them into the store",
        "store": "collect garbage, check and measure the store",
        "version": "print the version",
        "completion": "print a completion script for a shell",
    },
}

COMMANDS: Mapping[str, str] = {
    name: summary for group in GROUPS.values() for name, summary in group.items()
}

MODULES: Mapping[str, str] = {"import": "import_"}
"""Where a command's module is not called as the command is: a keyword cannot be imported."""
