"""The command line before Hydra reads it, and Hydra's errors as one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.nvml import gpus
from launcher.errors import Parser, UserError

REMOVED = {
    "block_iterations": "it is fixed at 10",
    "hydra.launcher.poll_s": "Slurm is queried every 2 to 8 s",
    "search.finalists_per_group": "up to 2 configs of a group reach the final",
    "thresholds.dip": "it is fixed at 0.95",
    "thresholds.fleet_floor": "it is fixed at 0.01",
    "thresholds.fleet_z": "it is fixed at 3.5",
    "thresholds.shape": "it is fixed at [0.03,0.05]",
}
"""Keys of earlier versions, and what holds now."""

_SMALL = ("workload=small", "grid=smoke", "measure=quick", "search.rounds=2", "search.final_groups=2")
"""The toy workload of a dry run: four processes on two cores take minutes for a real one."""

_MACHINE_KEYS = ("hardware", "backend", "backend.name", "hydra/launcher")
_ASKING = ("--hydra-help", "--shell-completion", "--info")
"""Flags that measure nothing."""

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

_ADDABLE = ("grid.", "hydra")
"""Prefixes of keys that the schema does not list: knobs of a backend, and Hydra's own."""

_CHOICE = re.compile(r"^(\+?(?:hardware|ep|workload|grid|measure|search|backend))=(\w+(?:,\w+)*)$")
"""A choice of a group, or several."""

_UNKNOWN_CHOICE = re.compile(r"Could not find '([^']+)/([^'/]+)' Available options in '\1': (.*)$")
"""Hydra's message for a choice that a group lacks, on one line."""


def parse_flags(module: str, arguments: Sequence[str]) -> list[str]:
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
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--config-dir", "-cd")
    options, overrides = parser.parse_known_args(arguments)
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


def complete_arguments(arguments: Sequence[str], toy: Sequence[str] = _SMALL) -> list[str]:
    """The arguments as Hydra needs them: choices in its words, and on a machine without GPUs a toy workload.

    ``toy`` fills only the groups that the arguments leave open, and only if they choose neither hardware, backend nor
    launcher. UserError as in ``check_keys``.
    """
    check_keys(arguments)
    quoted = [_choice(argument) for argument in arguments]
    keys = {_key(argument) for argument in arguments}
    if keys & {*_MACHINE_KEYS, *_ASKING} or gpus.inventory():
        return quoted
    return quoted + [override for override in toy if _key(override) not in keys]


def check_keys(arguments: Sequence[str]) -> None:
    """UserError for a key of an earlier version, and for ``+KEY`` that nothing reads: Hydra would add a typo."""
    for argument in arguments:
        if _key(argument) in REMOVED:
            raise UserError(_removed_message(_key(argument)), hint="leave it out")
        if argument.startswith("+") and not argument.lstrip("+").startswith(_ADDABLE):
            raise UserError(f"{argument} adds a key that nothing reads", hint="without +; --help lists the keys")


def drop_removed(arguments: Sequence[str]) -> list[str]:
    """The arguments of an earlier version's command without removed keys, each with a line on stderr."""
    for argument in arguments:
        if _key(argument) in REMOVED:
            print(f"dropped {argument}: {_removed_message(_key(argument))}", file=sys.stderr)
    return [argument for argument in arguments if _key(argument) not in REMOVED]


def make_output_folder(arguments: Sequence[str]) -> None:
    """Makes the folder of Hydra and of new run folders. UserError if that fails."""
    if set(arguments) & set(_ASKING):
        return
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith("outputs=")]
    folder = Path(values[-1].strip("'\"") if values else "outputs") / ".hydra"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make a folder in outputs: {error.strerror}: {error.filename}", hint="outputs=FOLDER"
        ) from None


def one_line_message(error: Exception) -> str:
    """An error of Hydra or OmegaConf as one line with its cause, without its search path and its advice to add keys."""
    message = " ".join(str(error).split())
    for addition in (" To append to your", " Config search path:"):
        message = message.partition(addition)[0].rstrip(".")
    in_file = re.match(r"In '[^']*/[^']*': ", message)  # of the site: In 'hydra/launcher/mysite': ...
    place = in_file[0] if in_file else ""
    for key in REMOVED:
        if key in message:
            return place + _removed_message(key)
    unknown = _UNKNOWN_CHOICE.search(message)
    if unknown:
        group, choice, choices = unknown.groups()
        return f"{place}{group} must be one of {', '.join(choices.split())}, got {choice}"
    cause = next(iter(str(error.__cause__ or "").splitlines()), "")
    return message if not cause or cause in message else f"{message}: {cause}"


def command_line(overrides: Sequence[str] = (), hydra_overrides: Sequence[str] = ()) -> list[str]:
    """This command, with the toy workload if one was filled in.

    For one of several sweeps (ep=2,4) it is the command of that sweep, with its ``overrides``: it can be resumed by
    itself.
    """
    if all(override in sys.argv for override in overrides):
        return ["deepep-sweep", *sys.argv[1:]]
    kept = [override for override in hydra_overrides if not override.startswith("hydra.mode=")]
    return ["deepep-sweep", "-m", *kept, *overrides]


def quote(value: object) -> str:
    """A value that Hydra takes as it stands, whatever characters it has."""
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _key(argument: str) -> str:
    """The key of ``KEY=VALUE``, ``+KEY=VALUE`` or ``~KEY``."""
    return argument.partition("=")[0].lstrip("+~")


def _removed_message(key: str) -> str:
    return f"{key} is no longer a key ({REMOVED[key]})"


def _choice(argument: str) -> str:
    """``ep=2`` as ``ep='2'``: Hydra takes a bare number for an integer, and no integer for the name of a choice.

    ``backend=[deepep,nccl_ep]`` as ``backend.name=[deepep,nccl_ep]``: one sweep, where Hydra would take two choices.
    """
    if argument.startswith("backend=["):
        return argument.replace("backend=", "backend.name=", 1)
    match = _CHOICE.match(argument)
    if not match:
        return argument
    choices = [f"'{choice}'" if choice.isdigit() else choice for choice in match[2].split(",")]
    return f"{match[1]}={','.join(choices)}"
