"""The command line before Hydra reads it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.nvml import gpus
from launcher.errors import Parser, UserError

_SMALL = ("workload=small", "grid=smoke", "measure=quick", "search.rounds=2", "search.final_groups=2")
_DECIDED = ("hardware", "backend", "hydra/launcher")
_QUERIES = ("--hydra-help", "--shell-completion", "--info")
"""Flags with which Hydra prints something and starts nothing."""

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_MAY_BE_ADDED = ("grid.", "hydra")
"""Prefixes of keys that the schema does not know: the knobs of a backend, and Hydra's own."""

_CHOICE = re.compile(r"^(\+?(?:hardware|ep|workload|grid|measure|search|backend))=(\w+(?:,\w+)*)$")
"""A choice of a group, or several."""


def parse_flags(module: str, given: Sequence[str]) -> list[str]:
    """The arguments with Hydra's flags in front, as Hydra needs them. UserError for a flag that Hydra does not know.

    -m is implied: it gives way to a flag that asks for something else. ``module`` as in ``python -m module``.
    """
    parser = Parser(module)
    parser.add_argument("--multirun", "-m", action="store_true")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--run", "-r", action="store_true")
    mode.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    mode.add_argument("--info", "-i", nargs="?", const="all", choices=_INFO)
    mode.add_argument("--shell-completion", "-sc", action="store_true")
    mode.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--resolve", action="store_true")
    for name, short in (
        ("--package", "-p"),
        ("--config-path", "-cp"),
        ("--config-name", "-cn"),
        ("--config-dir", "-cd"),
    ):
        parser.add_argument(name, short)
    options, overrides = parser.parse_known_args(given)
    unknown = [argument for argument in overrides if argument.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.resolve and not options.cfg:
        parser.error("--resolve needs --cfg")
    if any((options.run, options.cfg, options.info, options.shell_completion, options.hydra_help)):
        options.multirun = False
    flags = []
    for name, value in vars(options).items():
        if value:
            flag = "-m" if name == "multirun" else f"--{name.replace('_', '-')}"
            flags += [flag] if value is True else [flag, value]
    return flags + overrides


def quote(value: object) -> str:
    """A value that Hydra takes as it stands, whatever characters it has."""
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def complete_arguments(given: Sequence[str], small: Sequence[str] = _SMALL) -> list[str]:
    """The arguments as Hydra needs them: numeric choices quoted, and a dry run made small on a machine without GPUs.

    UserError for an added key, ``+KEY``, that nothing would read.

    ``small``: the overrides of a dry run, since four processes on two cores take minutes for a real workload. Each is
    added only where the command line leaves its key open and names neither hardware, backend nor launcher.
    """
    refuse_added(given)
    quoted = [_quote_choice(argument) for argument in given]
    keys = {argument.partition("=")[0].lstrip("+~") for argument in given}
    if keys & {*_DECIDED, *_QUERIES} or gpus.inventory():
        return quoted
    return quoted + [override for override in small if override.partition("=")[0] not in keys]


def refuse_added(given: Sequence[str]) -> None:
    """UserError for ``+KEY`` that nothing would read: Hydra adds it, and a typo would pass in silence."""
    for argument in given:
        if argument.startswith("+") and not argument.lstrip("+").startswith(_MAY_BE_ADDED):
            raise UserError(f"{argument} adds a key that nothing reads", hint="without +; --help lists the keys")


def make_output_folder(given: Sequence[str]) -> None:
    """Makes the folder for Hydra and for new run folders. UserError if it cannot be made."""
    if set(given) & set(_QUERIES):
        return
    folders = [argument.partition("=")[2] for argument in given if argument.startswith("outputs=")]
    folder = Path(folders[-1].strip("'\"") if folders else "outputs") / ".hydra"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make a folder in outputs: {error.strerror}: {error.filename}", hint="outputs=FOLDER"
        ) from None


def one_line_message(error: Exception) -> str:
    """An error of Hydra or OmegaConf in one line with its cause, without its search path and its advice to add keys."""
    message = " ".join(str(error).split())
    for addition in (" To append to your config", " Config search path:"):
        message = message.partition(addition)[0].rstrip(".")
    cause = next(iter(str(error.__cause__ or "").splitlines()), "")
    return message if not cause or cause in message else f"{message}: {cause}"


def _quote_choice(argument: str) -> str:
    """``ep=2`` as ``ep='2'``: Hydra takes a bare number for an integer, and no integer for the name of a choice."""
    match = _CHOICE.match(argument)
    if not match:
        return argument
    choices = [f"'{choice}'" if choice.isdigit() else choice for choice in match[2].split(",")]
    return f"{match[1]}={','.join(choices)}"


def command_line(overrides: Sequence[str] = (), hydra_overrides: Sequence[str] = ()) -> list[str]:
    """The command of this process, with the overrides that complete it on this machine.

    Of several sweeps (ep=2,4), the command of the one with these overrides: each can be resumed by itself.
    """
    if all(override in sys.argv for override in overrides):
        return ["deepep-sweep", *sys.argv[1:]]
    kept = [override for override in hydra_overrides if not override.startswith("hydra.mode=")]
    return ["deepep-sweep", "-m", *kept, *overrides]
