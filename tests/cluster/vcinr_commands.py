"""Finds the `vcinr` commands in a text and parses them with the real command line, executing nothing."""

import re
import shlex
from typing import Any

import typer

from vcinr_batch import cli

ANY_NUMBER = "8"
"""Stands for every shell variable; a string where one is wanted."""


def commands_in(text: str) -> list[list[str]]:
    """The arguments of each `vcinr ...` line that is no comment, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = (line.strip() for line in joined.splitlines())
    return [_arguments(line) for line in lines if line.startswith("vcinr ")]


def parse(arguments: list[str]) -> str:
    """The command's name; raises what the command line raises for wrong options or values."""
    group: Any = typer.main.get_command(cli.app)
    called: list[str] = []
    _replace_callbacks(group, called)
    group.main(args=arguments, prog_name="vcinr", standalone_mode=False)
    (name,) = called
    return name


def _arguments(line: str) -> list[str]:
    command = re.split(r"\s(?:\|\||&&|&)(?:\s|$)", line)[0]
    command = re.sub(r'"\$@"', "", command)
    return shlex.split(re.sub(r"\$\{?\w+\}?", ANY_NUMBER, command))[1:]


def _replace_callbacks(group: Any, called: list[str]) -> None:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            _replace_callbacks(command, called)
        else:
            command.callback = lambda name=name, **_: called.append(name)
