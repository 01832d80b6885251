"""Configurations from conf/ by Hydra: one for a caller in Python, or those of a command line with its launchers.

conf/ is found by its path: another package of that name may come first on sys.path.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
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
        hint = f"python -m launcher.{name} --help lists groups, choices and keys"
        raise UserError(arguments.one_line_message(error), hint=hint) from None


def run(name: str, given: Sequence[str], body: Callable[[list[Composed]], int]) -> int:
    """The exit status of a command line that Hydra reads: that of ``body``, or of the launcher that submitted jobs.

    ``body`` gets every configuration that this process has to run. UserError when Hydra refuses an argument.
    """
    schema.register()
    job_options.register()
    sys.argv[1:] = given  # where Hydra and arguments.command_line read them
    composed: list[Composed] = []

    def collect(config: DictConfig) -> None:
        """Hydra's basic launcher calls it for each configuration."""
        overrides = HydraConfig.get().overrides
        composed.append(Composed(config, arguments.command_line(overrides.task, overrides.hydra)))

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing
    try:
        with _user_errors(name):
            hydra.main(version_base=_VERSION_BASE, config_path=_CONF, config_name=name)(collect)()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OK
    return body(composed)
