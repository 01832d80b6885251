"""Where Hydra looks for launchers; the work is done in launcher.submission."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class SubmititLauncher(Launcher):
    """Hands every composed configuration of a multirun to launcher.submission, all checked before any is submitted."""

    def __init__(self, **settings: Any) -> None:
        """``settings`` are the fields of launcher.settings.SubmititConf."""
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's call before launch."""
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One run folder for each configuration. Ends the process when the exit status is not 0."""
        from launcher.config.job_options import SubmititConf
        from launcher.jobs import submission
        from launcher.validation.run import on_slurm

        plain = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in self._settings.items()
        }
        configs = [
            self._context.config_loader.load_sweep_config(self._config, list(overrides)) for overrides in job_overrides
        ]
        launch = on_slurm.launch if self._config.hydra.job.config_name == "validate" else submission.launch
        status = launch(configs, SubmititConf(**plain))
        if status:
            raise SystemExit(status)
        return []
