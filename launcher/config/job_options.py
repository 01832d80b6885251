"""The resources of a job and how the command waits for it: the fields of hydra/launcher=submitit_slurm."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

_TARGET = "hydra_plugins.deepep_sweep.SubmititLauncher"


@dataclass
class SubmititConf:
    """null leaves a choice to Slurm, or to the plan where the comment says so."""

    _target_: str = _TARGET
    cluster: str = "slurm"  # slurm, or local: the same jobs as processes of this machine
    partition: str | None = None  # Slurm's queue
    account: str | None = None  # account to charge
    qos: str | None = None  # quality of service
    constraint: str | None = None  # features that the node must have
    nodelist: str | None = None  # nodes to run on
    exclude: str | None = None  # nodes not to run on
    exclusive: bool = False  # the whole node, without other jobs
    reservation: str | None = None  # resources set aside under this name
    timeout_min: int | None = None  # the plan: three times its forecast, and ten minutes
    gpus_per_node: int | None = None  # the plan: one for each rank
    cpus_per_task: int | None = None  # the plan: cpus_per_gpu of the hardware for each GPU
    mem: str | None = None  # Slurm's notation, 200G; 0 is all of the node
    setup: list[str] = field(default_factory=list)  # shell lines before the program, module load ...
    container_image: str | None = None  # pyxis
    container_mounts: str | None = None  # pyxis
    python: str | None = None  # the command that runs Python in the job, e.g. apptainer exec --nv image.sif python
    requeue: bool = True  # after preemption and at the time limit; records are kept
    srun_args: list[str] = field(default_factory=list)  # further arguments of srun
    array_parallelism: int = 64  # shards that run at once, at most
    signal_delay_s: int = 90  # a shard finishes its point and stops this long before the time limit
    detach: bool = False  # return after the submission
    on_interrupt: str = "ask"  # on Ctrl-C: ask, detach or cancel


def register() -> None:
    """Registers both launchers with Hydra after all plugins: they replace others of the same names."""
    Plugins.instance()
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="submitit_slurm", node=SubmititConf, provider="deepep-sweep")
    store.store(
        group="hydra/launcher",
        name="submitit_local",
        node=SubmititConf(cluster="local"),
        provider="deepep-sweep",
    )
