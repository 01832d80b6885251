"""What the command line means before Hydra reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench import telemetry

_SMALL = ("workload=small", "grid=smoke", "measure=quick", "search.rounds=2", "search.final_groups=2")
_DECIDED = ("hardware", "backend", "hydra/launcher")
_ONLY_ASKING = ("-h", "--help", "--hydra-help", "--version", "-sc", "--shell-completion", "-i", "--info")
_NUMBER_CHOICE = re.compile(r"^(\+?ep)=(\d+(?:,\d+)*)$")


def completed(given: Sequence[str]) -> list[str]:
    """The arguments as Hydra needs them: numeric choices quoted, and on a machine without GPUs the dry run's groups.

    The dry run gets a toy workload, since four processes on two cores take minutes for a real one. It is only filled
    in where the command line leaves a group open and chooses neither hardware, backend nor launcher.
    """
    quoted = [_quote_choice(argument) for argument in given]
    keys = {argument.partition("=")[0].lstrip("+~") for argument in given}
    if keys & {*_DECIDED, *_ONLY_ASKING} or telemetry.inventory():
        return quoted
    return quoted + [override for override in _SMALL if override.partition("=")[0] not in keys]


def _quote_choice(argument: str) -> str:
    """``ep=2`` as ``ep='2'``: Hydra takes a bare number for an integer, and no integer for the name of a choice."""
    match = _NUMBER_CHOICE.match(argument)
    if not match:
        return argument
    return f"{match[1]}=" + ",".join(f"'{number}'" for number in match[2].split(","))
