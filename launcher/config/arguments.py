"""What the command line means before Hydra reads it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.nvml import gpus
from launcher.errors import UserError

_SMALL = ("workload=small", "grid=smoke", "measure=quick", "search.rounds=2", "search.final_groups=2")
_DECIDED = ("hardware", "backend", "hydra/launcher")
_ONLY_ASKING = ("-h", "--help", "--hydra-help", "--version", "-sc", "--shell-completion", "-i", "--info")
_MAY_BE_ADDED = ("grid.", "hydra")
"""What there are more of than the schema knows: the knobs of a backend, and Hydra's own."""

_NUMBER_CHOICE = re.compile(r"^(\+?ep)=(\d+(?:,\d+)*)$")


def complete_arguments(given: Sequence[str]) -> list[str]:
    """The arguments as Hydra needs them: numeric choices quoted, and on a machine without GPUs the dry run's groups.

    UserError for a key that is added, ``+KEY``, and that nothing would read.

    The dry run gets a toy workload, since four processes on two cores take minutes for a real one. It is only filled
    in where the command line leaves a group open and chooses neither hardware, backend nor launcher.
    """
    refuse_added(given)
    quoted = [_quote_choice(argument) for argument in given]
    keys = {argument.partition("=")[0].lstrip("+~") for argument in given}
    if keys & {*_DECIDED, *_ONLY_ASKING} or gpus.inventory():
        return quoted
    return quoted + [override for override in _SMALL if override.partition("=")[0] not in keys]


def refuse_added(given: Sequence[str]) -> None:
    """UserError for ``+KEY`` that nothing would read: Hydra adds it, and a typo would pass in silence."""
    for argument in given:
        if argument.startswith("+") and not argument.lstrip("+").startswith(_MAY_BE_ADDED):
            raise UserError(f"{argument} adds a key that nothing reads", hint="without +; --help lists the keys")


def make_output_folder(given: Sequence[str]) -> None:
    """Makes the folder that Hydra and new run folders are made in. UserError where that cannot be."""
    if set(given) & set(_ONLY_ASKING):
        return
    named = [argument.partition("=")[2] for argument in given if argument.startswith("outputs=")]
    folder = Path(named[-1].strip("'\"") if named else "outputs") / ".hydra"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make a folder in outputs: {error.strerror}: {error.filename}", hint="outputs=FOLDER"
        ) from None


def one_line_message(error: Exception) -> str:
    """One line of what Hydra or OmegaConf says, with the reason that it keeps behind, without advice to add keys."""
    said = " ".join(str(error).split()).partition(" To append to your config")[0].rstrip(".")
    cause = next(iter(str(error.__cause__ or "").splitlines()), "")
    return said if not cause or cause in said else f"{said}: {cause}"


def _quote_choice(argument: str) -> str:
    """``ep=2`` as ``ep='2'``: Hydra takes a bare number for an integer, and no integer for the name of a choice."""
    match = _NUMBER_CHOICE.match(argument)
    if not match:
        return argument
    return f"{match[1]}=" + ",".join(f"'{number}'" for number in match[2].split(","))


def command_line(overrides: Sequence[str] = (), of_hydra: Sequence[str] = ()) -> list[str]:
    """The command as it was given, with what this machine filled in.

    Where it meant several sweeps (ep=2,4), that of the one with these overrides, so that it can be resumed by itself.
    """
    if all(override in sys.argv for override in overrides):
        return ["deepep-sweep", *sys.argv[1:]]
    kept = [override for override in of_hydra if not override.startswith("hydra.mode=")]
    return ["deepep-sweep", "-m", *kept, *overrides]
