"""What a job is given and how the sweep waits for it: the fields of hydra/launcher=submitit_slurm."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

_TARGET = "hydra_plugins.deepep_sweep.SubmititLauncher"


@dataclass
class SubmititConf:
    """None leaves a choice to Slurm, or to the plan where a comment says so."""

    _target_: str = _TARGET
    cluster: str = "slurm"  # slurm, or local: the same jobs as processes of this machine
    partition: str | None = None  # queue of Slurm
    account: str | None = None  # whom the job is charged to
    qos: str | None = None  # quality of service
    constraint: str | None = None  # features that the node must have
    nodelist: str | None = None  # nodes to run on
    exclude: str | None = None  # nodes not to run on
    exclusive: bool = False  # the whole node, nobody else on it
    reservation: str | None = None  # resources set aside under this name
    timeout_min: int | None = None  # the plan: three times what it expects, and ten minutes
    gpus_per_node: int | None = None  # the plan: one for each rank
    cpus_per_task: int | None = None  # the plan: cpus_per_gpu of the hardware for each GPU
    mem: str | None = None  # Slurm's notation, 200G; 0 is all of the node
    setup: list[str] = field(default_factory=list)  # shell lines before the program, module load ...
    container_image: str | None = None  # pyxis
    container_mounts: str | None = None  # pyxis
    python: str | None = None  # the command that runs Python in the job, say apptainer exec --nv image.sif python
    requeue: bool = True  # after preemption and at the time limit; the records are kept and completed
    srun_args: list[str] = field(default_factory=list)  # further arguments of srun
    array_parallelism: int = 64  # shards that may run at once
    signal_delay_s: int = 90  # this long before the time limit a shard finishes its point and stops
    detach: bool = False  # return at once
    on_interrupt: str = "ask"  # of Ctrl-C: ask, detach or cancel


def register() -> None:
    """Stores both launchers after every plugin had its turn, so that ours are found even beside another's."""
    Plugins.instance()
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="submitit_slurm", node=SubmititConf, provider="deepep-sweep")
    store.store(
        group="hydra/launcher",
        name="submitit_local",
        node=SubmititConf(cluster="local"),
        provider="deepep-sweep",
    )
