"""The configuration files of a SlurmLab."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from pathlib import Path
from typing import NamedTuple


class Cluster(NamedTuple):
    """The shape of a cluster, its folder, and the first of its ports."""

    root: Path
    num_nodes: int
    gpus: int
    cpus: int
    accounting: bool
    auth: str
    max_array_size: int
    base: int

    @property
    def user(self) -> str:
        return pwd.getpwuid(os.getuid()).pw_name

    @property
    def munge(self) -> str:
        """The option that names munge's socket, empty without munge."""
        return f"socket={self.root}/run/munge.sock" if self.auth == "munge" else ""

    @property
    def hosts(self) -> str:
        """The host list of all nodes."""
        return f"gpu[1-{self.num_nodes}]"


def write(cluster: Cluster) -> None:
    """Writes all configuration files, with the folders and the fake devices that they name."""
    _make_folders(cluster)
    etc = cluster.root / "etc"
    (etc / "plugstack.conf").write_text("")
    # slurmd loads a cgroup plugin although nothing here uses it; v1 does nothing until it is called
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    devices = f"{cluster.root}/dev/nvidia[0-{cluster.gpus - 1}]"
    (etc / "gres.conf").write_text(f"NodeName={cluster.hosts} Name=gpu Type=h200 Flags=nvidia_gpu_env File={devices}\n")
    array = f"MaxArraySize={cluster.max_array_size}\n"
    parts = (_identity(cluster), _MACHINE, array, _QUICK, _accounting(cluster), _nodes(cluster))
    (etc / "slurm.conf").write_text("".join(parts))
    if cluster.accounting:
        _write_database_daemon(cluster)
        _write_database(cluster)


def _make_folders(cluster: Cluster) -> None:
    root = cluster.root
    root.chmod(0o755)
    spools = (f"spool/gpu{number + 1}" for number in range(cluster.num_nodes))
    for folder in ("etc", "state", "log", "run", "dev", *spools):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(cluster.gpus):  # Slurm requires a character device whose name ends in its index
        with contextlib.suppress(FileExistsError):
            (root / "dev" / f"nvidia{index}").symlink_to("/dev/null")


def _identity(cluster: Cluster) -> str:
    root, user = cluster.root, cluster.user
    return f"""ClusterName=lab
SlurmctldHost={socket.gethostname().split(".")[0]}(127.0.0.1)
SlurmctldPort={cluster.base}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/{cluster.auth}
CredType=cred/{cluster.auth}
# cred_expire is also the wait of a requeued job; less than 5 counts as 120
AuthInfo={",".join(filter(None, [cluster.munge, "cred_expire=5"]))}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
PlugStackConfig={root}/etc/plugstack.conf
"""


_MACHINE = """CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MailProg=/bin/true
# one machine plays every node: no cgroups, no binding, configured sizes instead of real ones
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=CORE
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=2000
GresTypes=gpu
ReturnToService=1
JobRequeue=1
"""


_QUICK = """# short intervals for quick tests
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_window=1440
PriorityType=priority/basic
CompleteWait=0
KillWait=5
MinJobAge=3600
SlurmdTimeout=5
SlurmctldTimeout=30
MessageTimeout=3
BatchStartTimeout=30
UnkillableStepTimeout=60
InactiveLimit=0
WaitTime=5
TCPTimeout=1
EpilogMsgTime=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


def _accounting(cluster: Cluster) -> str:
    if not cluster.accounting:
        return "AccountingStorageType=accounting_storage/none\n"
    return f"""AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={cluster.base + 1}
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
{f"AccountingStoragePass={cluster.root}/run/munge.sock" if cluster.munge else ""}
"""


def _nodes(cluster: Cluster) -> str:
    first = cluster.base + 2
    ports = f"[{first}-{first + cluster.num_nodes - 1}]"
    return f"""NodeName={cluster.hosts} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports} \
Sockets=2 CoresPerSocket={cluster.cpus // 2} ThreadsPerCore=1 RealMemory=512000 Gres=gpu:h200:{cluster.gpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=7-0 DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=low Nodes=ALL MaxTime=7-0 DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE State=UP
"""


def _write_database_daemon(cluster: Cluster) -> None:
    root, user = cluster.root, cluster.user
    file = root / "etc" / "slurmdbd.conf"
    file.write_text(f"""AuthType=auth/{cluster.auth}
{f"AuthInfo={cluster.munge}" if cluster.munge else ""}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={cluster.base + 1}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm_acct
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
CommitDelay=0
""")
    file.chmod(0o600)


def _write_database(cluster: Cluster) -> None:
    root = cluster.root
    (root / "etc" / "my.cnf").write_text(f"""[mariadbd]
datadir={root}/db
socket={root}/run/mysqld.sock
pid-file={root}/run/mariadbd.pid
log-error={root}/log/mariadbd.log
tmpdir={root}/run
user={cluster.user}
skip-networking
skip-grant-tables
skip-log-bin
skip-name-resolve
performance_schema=OFF
aria-log-file-size=8M
aria_pagecache_buffer_size=8M
key_buffer_size=1M
innodb_buffer_pool_size=64M
innodb_log_file_size=8M
innodb_flush_log_at_trx_commit=0
innodb_flush_method=nosync
innodb_doublewrite=0
innodb_lock_wait_timeout=900
""")
