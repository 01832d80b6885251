"""The launcher that Hydra finds. launcher.jobs.submission and launcher.validation.run.on_slurm do the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class SubmititLauncher(Launcher):
    """Passes all composed configurations of a multirun on at once: all are checked before any job is submitted."""

    def __init__(self, **settings: Any) -> None:
        """``settings`` are the fields of launcher.config.job_options.SubmititConf."""
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what ``launch`` needs; Hydra calls it first."""
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Launches a sweep or a validation for each configuration. Exits unless the status is 0."""
        from launcher.config.compose import LauncherExit, running_command
        from launcher.config.job_options import SubmititConf
        from launcher.jobs import submission
        from launcher.validation.run import on_slurm

        settings = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in self._settings.items()
        }
        configs = [
            self._context.config_loader.load_sweep_config(self._config, list(overrides)) for overrides in job_overrides
        ]
        launch = on_slurm.launch if running_command() == "validate" else submission.launch
        status = launch(configs, SubmititConf(**settings))
        if status:
            raise LauncherExit(status)
        return []
