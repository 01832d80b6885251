"""Configurations from conf/ by Hydra: one for a caller in Python, or those of a command line with its launchers.

conf/ is found by its path: another package of that name may come first on sys.path.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from launcher.config import arguments, job_options, schema
from launcher.errors import OK, ROOT, UserError

_CONF = str(ROOT / "conf")
_VERSION_BASE = "1.3"
_CLEAR = "grid.KNOB=null clears a knob, if it stands before grid.KNOB=[8,16] or grid.KNOB.LIBRARY=[8,16]"
_running = ["sweep"]


class Composed(NamedTuple):
    """A configuration, and the command that composes it again."""

    config: DictConfig
    command: list[str]


def compose(name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration ``conf/NAME.yaml`` with these overrides. UserError when Hydra refuses one.

    It may be called in a process that uses Hydra itself.
    """
    schema.register()
    with (
        _user_errors(name),
        _set_aside(GlobalHydra.instance()),
        hydra.initialize_config_dir(_CONF, version_base=_VERSION_BASE),
    ):
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.is_sweep_override():
                raise UserError(f"{override.input_line} has several values, one is possible here")
        return hydra.compose(name, overrides=list(overrides))


@contextlib.contextmanager
def _set_aside(instance: GlobalHydra) -> Iterator[None]:
    """Empties Hydra's one instance, which would refuse to be initialised again, and restores it."""
    outer = instance.hydra
    instance.clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


@contextlib.contextmanager
def _user_errors(name: str) -> Iterator[None]:
    """Raises what Hydra and OmegaConf refuse as a UserError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        message = arguments.one_line_message(error)
        is_other_form = "Cannot merge" in message and "grid." in message
        hint = _CLEAR if is_other_form else f"python -m launcher.{name} --help lists groups, choices and keys"
        raise UserError(message, hint=hint) from None
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if (Path(last.filename).name, last.name) != ("omegaconf.py", "update"):
            raise
        raise UserError(f"a list has no keys to set ({error})", hint=_CLEAR) from None


class LauncherExit(SystemExit):
    """Ends a command with the exit status of a launcher that ran its jobs elsewhere."""


def run(name: str, given: Sequence[str], body: Callable[[Composed], int]) -> int:
    """The exit status of a command line that Hydra reads: the highest of ``body``, or that of a launcher.

    Hydra calls ``body`` for each configuration that this process has to run, in a job of its own, where
    ``hydra.job.env_set``, ``chdir`` and callbacks are in force. UserError when Hydra refuses an argument, or from
    ``body``; then no further configuration is run.
    """
    schema.register()
    job_options.register()
    sys.argv[1:] = given  # where Hydra and arguments.command_line read them
    statuses: list[int] = []
    refusals: list[UserError] = []
    _running[:] = [name]

    def job(config: DictConfig) -> None:
        """Hydra's basic launcher calls it for each configuration, and a launcher of ours never."""
        overrides = HydraConfig.get().overrides
        try:
            statuses.append(body(Composed(config, arguments.command_line(overrides.task, overrides.hydra))))
        except UserError as error:
            refusals.append(error)
            raise LauncherExit from None

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing
    try:
        with _user_errors(name):
            hydra.main(version_base=_VERSION_BASE, config_path=_CONF, config_name=name)(job)()
    except LauncherExit as end:
        if refusals:
            raise refusals[0] from None
        return end.code if isinstance(end.code, int) else OK
    return max(statuses, default=OK)


def running_command() -> str:
    """The name of the command whose line Hydra reads now, ``sweep`` or ``validate``, for the launchers."""
    return _running[0]
