"""A real, throw-away Slurm on this machine, from Debian's packages: no systemd, no container, no GPU, no root needed.

    with SlurmLab() as lab: subprocess.run(["sbatch", ...], env=lab.environ())

Every daemon is a child in the foreground; everything lives below one short folder of /tmp. A small second process ends
the cluster should this one be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

PACKAGES = "slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core mariadb-client-core"
"""What apt-get install --no-install-recommends needs."""

_DAEMONS = ("slurmctld", "slurmd", "munged", "slurmdbd", "mariadbd")
_SBIN = "/usr/sbin:/usr/local/sbin:/sbin"
_NODE_MARK = "SLURMLAB_NODE"
_LIVE = {"PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"}
_UP = {"idle", "mixed", "allocated"}


class SlurmLabError(RuntimeError):
    """The cluster does not do what is asked; the text has the end of the daemon's log."""


def missing() -> list[str]:
    """Daemons that are not installed."""
    return [name for name in _DAEMONS if not _found(name)]


def _found(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":" + _SBIN)


def _program(name: str) -> str:
    found = _found(name)
    if not found:
        raise SlurmLabError(f"{name} not found: apt-get install --no-install-recommends {PACKAGES}")
    return found


class Process(NamedTuple):
    """A process of /proc. ``start`` is the kernel's start time, so that a recycled id is never taken for it."""

    pid: int
    parent: int
    name: str
    start: int

    @property
    def environment(self) -> dict[str, str]:
        """What it was started with; empty when it is gone or another user's."""
        try:
            raw = Path(f"/proc/{self.pid}/environ").read_bytes()
        except OSError:
            return {}
        return dict(item.split("=", 1) for item in raw.decode(errors="replace").split("\0") if "=" in item)


def process(pid: int) -> Process | None:
    """The process with this id, unless it is a zombie."""
    try:
        head, tail = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
    except OSError:
        return None
    fields = tail.split()
    return None if fields[0] == "Z" else Process(pid, int(fields[1]), head.split("(", 1)[1], int(fields[19]))


def processes() -> Iterator[Process]:
    """All of this machine's."""
    for entry in Path("/proc").iterdir():
        found = process(int(entry.name)) if entry.name.isdigit() else None
        if found is not None:
            yield found


class _PortBlock:
    """Consecutive free TCP ports below the ephemeral range, reserved by an abstract socket that dies with us."""

    def __init__(self, count: int) -> None:
        bases = list(range(20000, 32000, 64))
        random.SystemRandom().shuffle(bases)
        for base in bases:
            self._hold = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with contextlib.suppress(OSError):
                self._hold.bind(f"\0slurmlab-ports-{base}")
                if all(map(self._is_free, range(base, base + count))):
                    self.base = base
                    return
            self._hold.close()
        raise SlurmLabError("no free block of ports")

    @staticmethod
    def _is_free(port: int) -> bool:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("0.0.0.0", port))
            except OSError:
                return False
        return True

    def release(self) -> None:
        self._hold.close()


def _listening(port: int) -> bool:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if local.endswith(f":{port:04X}") and state == "0A":
            return True
    return False


class SlurmLab:
    """Nodes gpu1, gpu2 ... with fake GPUs, and the partitions main and low, whose jobs give way to those of main."""

    def __init__(
        self,
        *,
        num_nodes: int = 2,
        gpus: int = 4,
        cpus: int = 64,
        accounting: bool = True,
        auth: str = "munge",
        max_array_size: int = 1001,
    ) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))  # short: unix sockets lie below it
        self.nodes = [f"gpu{number + 1}" for number in range(num_nodes)]
        self._gpus, self._cpus, self._max_array_size = gpus, cpus, max_array_size
        self._accounting, self._auth = accounting, auth
        self._user = pwd.getpwuid(os.getuid()).pw_name
        self.conf = self.root / "etc" / "slurm.conf"
        self._daemons: dict[str, Process] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: _PortBlock | None = None
        self._reaper: subprocess.Popen[bytes] | None = None

    def environ(self, **more: str) -> dict[str, str]:
        """The environment in which Slurm's commands find this cluster."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return clean | {"SLURM_CONF": str(self.conf)} | more

    def command(self, *args: str, check: bool = True) -> str:
        """What a Slurm command prints."""
        done = subprocess.run(args, env=self.environ(), text=True, capture_output=True, timeout=60, check=False)
        if check and done.returncode:
            raise SlurmLabError(f"{' '.join(args)}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    # ---- up

    def __enter__(self) -> Self:
        try:
            for attempt in range(3):
                try:
                    self._start()
                    break
                except SlurmLabError as error:
                    if attempt == 2 or "in use" not in str(error):
                        raise
                    self._kill_all()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        self._ports = _PortBlock(2 + len(self.nodes))
        root, base = self.root, self._ports.base
        self._write_config(base)
        self._save()
        if self._reaper is None:
            self._reaper = subprocess.Popen(
                [sys.executable, __file__, "reap", str(root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        if self._accounting:
            self._install_database()
            self._spawn("mariadbd", _program("mariadbd"), f"--defaults-file={root}/etc/my.cnf")
        if self._auth == "munge":
            self._start_munge()
        if self._accounting:
            self._wait("mariadbd", (root / "run" / "mysqld.sock").exists)
            self._spawn("slurmdbd", _program("slurmdbd"), "-D", MYSQL_UNIX_PORT=f"{root}/run/mysqld.sock")
            self._wait("slurmdbd", lambda: _listening(base + 1))
        self._start_controller()
        for node in self.nodes:
            self.start_node(node, wait=False)
        self.wait_nodes(*self.nodes)

    def _start_controller(self) -> None:
        assert self._ports is not None
        base = self._ports.base
        self._spawn("slurmctld", _program("slurmctld"), "-D", "-i", "-f", str(self.conf))
        self._wait("slurmctld", lambda: _listening(base))

    @contextlib.contextmanager
    def without_controller(self) -> Iterator[None]:
        """Slurm answers nobody, as while its controller is restarted; jobs go on."""
        os.kill(self._daemons["slurmctld"].pid, signal.SIGTERM)  # it saves its state
        while self._alive("slurmctld"):
            time.sleep(0.02)
        try:
            yield
        finally:
            self._start_controller()

    def _start_munge(self) -> None:
        root = self.root
        key = root / "etc" / "munge.key"
        key.unlink(missing_ok=True)
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key": "etc/munge.key", "socket": "run/munge.sock", "pid": "run/munged.pid"}
        files |= {"log": "log/munged.log", "seed": "run/munged.seed"}
        options = [f"--{name if name == 'socket' else f'{name}-file'}={root}/{file}" for name, file in files.items()]
        self._spawn("munged", _program("munged"), "--foreground", "--force", *options, "--group-update-time=-1")
        self._wait("munged", (root / "run" / "munge.sock").exists)

    def _install_database(self) -> None:
        """What mariadb-install-db does, less what only people need."""
        if (self.root / "db" / "mysql").is_dir():
            return
        done = subprocess.run(
            [
                _program("mariadb-install-db"),
                f"--defaults-file={self.root}/etc/my.cnf",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
                f"--datadir={self.root}/db",
            ],
            capture_output=True,
            text=True,
            env=self.environ(),
            check=False,
        )
        if done.returncode:
            raise SlurmLabError(f"mariadb-install-db: {done.stderr[-2000:]}{done.stdout[-2000:]}")

    def start_node(self, node: str, *, wait: bool = True) -> None:
        """Its slurmd; with ``wait``, until Slurm takes it."""
        daemon = f"slurmd-{node}"
        self._spawn(daemon, _program("slurmd"), "-D", "-N", node, "-f", str(self.conf), **{_NODE_MARK: node})
        self._resume_down()
        if wait:
            self.wait_nodes(node)

    def kill_node(self, node: str) -> None:
        """A crash: slurmd and everything that runs on that node is gone at once, and Slurm is told."""
        self._end(f"slurmd-{node}")
        self._kill_job_processes(node)
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=crash")

    def _spawn(self, name: str, *argv: str, **more: str) -> None:
        with (self.root / "log" / f"{name}.out").open("ab") as out:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                env=self.environ(**more),
                start_new_session=True,
            )
        found = process(child.pid)
        self._children[name] = child
        if found is not None:
            self._daemons[name] = found
        self._save()

    def _save(self) -> None:
        """Everything that the reaper must know."""
        (self.root / "run" / "daemons.json").write_text(json.dumps(self._daemons))

    def _alive(self, name: str) -> bool:
        if name in self._children:
            return self._children[name].poll() is None
        known = self._daemons.get(name)
        found = process(known.pid) if known else None
        return found is not None and known is not None and found.start == known.start

    def _log(self, name: str) -> str:
        files = [self.root / "log" / f"{name}.{suffix}" for suffix in ("out", "log")]
        return "\n".join(file.read_text(errors="replace")[-1500:] for file in files if file.exists())

    def _wait(self, daemon: str, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not is_ready():
            if not self._alive(daemon):
                raise SlurmLabError(f"{daemon} ended\n{self._log(daemon)}")
            if time.monotonic() > deadline:
                raise SlurmLabError(f"{daemon} is not ready\n{self._log(daemon)}")
            time.sleep(0.02)

    # ---- for tests

    def node_states(self) -> dict[str, str]:
        """sinfo's word for each node."""
        out = self.command("sinfo", "-h", "-N", "-o", "%N %T", "-p", "main", check=False)
        return dict(map(str.split, out.splitlines()))

    def _resume_down(self) -> None:
        for node, state in self.node_states().items():
            if state.startswith(("down", "drain")):
                self.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def wait_nodes(self, *nodes: str) -> None:
        """Until Slurm takes them."""
        deadline = time.monotonic() + 30
        while not all(self.node_states().get(node) in _UP for node in nodes):
            if time.monotonic() > deadline:
                raise SlurmLabError(f"nodes are {self.node_states()}\n{self._log('slurmctld')}")
            time.sleep(0.05)

    def jobs(self) -> dict[str, str]:
        """Job or array task id -> state, of all that slurmctld remembers."""
        return dict(map(str.split, self.command("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()))

    def alive(self) -> list[str]:
        """Ids of the jobs that are not over."""
        return [job for job, state in self.jobs().items() if state in _LIVE]

    def reset(self) -> None:
        """No jobs, no job processes, every node up and idle."""
        self._kill_job_processes()
        for node in self.nodes:
            if not self._alive(f"slurmd-{node}"):
                self.start_node(node, wait=False)
        deadline = time.monotonic() + 30
        while True:
            states, alive = self.node_states(), {job.split("_")[0] for job in self.alive()}
            if not alive and all(states.get(node) == "idle" for node in self.nodes):
                return
            if alive:
                self.command("scancel", *sorted(alive), check=False)
                self._kill_job_processes()
            self._resume_down()
            if time.monotonic() > deadline:
                raise SlurmLabError(f"not idle: nodes {states}, jobs {alive}")
            time.sleep(0.1)

    # ---- down

    def _end(self, *names: str) -> None:
        for name in names:
            if self._alive(name):
                os.kill(self._daemons[name].pid, signal.SIGKILL)
        while any(map(self._alive, names)):
            time.sleep(0.005)
        for name in names:
            self._daemons.pop(name, None)
            self._children.pop(name, None)
        if (self.root / "run").is_dir():
            self._save()

    def job_processes(self, node: str | None = None) -> list[int]:
        """Ids of slurmstepd and of the processes of this cluster's jobs (of one node), and of all their descendants.

        slurmd hands its own environment to slurmstepd, so that the mark tells the node; the processes of a job carry
        SLURM_JOB_ID and SLURMD_NODENAME. Both carry this cluster's SLURM_CONF.
        """
        found: set[int] = set()
        children: dict[int, list[int]] = {}
        for one in processes():
            children.setdefault(one.parent, []).append(one.pid)
            environment = one.environment
            if environment.get("SLURM_CONF") != str(self.conf):
                continue
            at = environment.get(_NODE_MARK if one.name == "slurmstepd" else "SLURMD_NODENAME")
            if at is not None and one.name != "slurmd" and node in (None, at):
                found.add(one.pid)
        todo = list(found)
        while todo:
            more = [child for child in children.get(todo.pop(), ()) if child not in found]
            found.update(more)
            todo += more
        return sorted(found - {os.getpid()})

    def _kill_job_processes(self, node: str | None = None) -> None:
        for _ in range(50):
            found = self.job_processes(node)
            if not found:
                return
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _kill_all(self) -> None:
        """Slurm first, so that it starts nothing again; no state is worth saving."""
        self._end(*(name for name in self._daemons if name.startswith("slurmd-") or name == "slurmctld"))
        self._kill_job_processes()
        self._end(*self._daemons)
        if self._ports:
            self._ports.release()
            self._ports = None

    def stop(self) -> None:
        """Ends everything and removes the folder."""
        self._kill_all()
        shutil.rmtree(self.root, ignore_errors=True)
        if self._reaper:
            with contextlib.suppress(OSError):
                self._reaper.communicate(b"stopped")  # unlike the bare end of file that our death gives it
            self._reaper = None

    @classmethod
    def attach(cls, root: Path) -> SlurmLab:
        """The cluster of another process, to stop it."""
        lab = cls.__new__(cls)
        lab.root, lab.conf = root, root / "etc" / "slurm.conf"
        lab._daemons = {
            name: Process(*fields) for name, fields in json.loads((root / "run" / "daemons.json").read_text()).items()
        }
        lab._children, lab._ports, lab._reaper = {}, None, None
        return lab

    # ---- files

    def _write_config(self, base: int) -> None:
        root, user = self.root, self._user
        root.chmod(0o755)
        for folder in ("etc", "state", "log", "run", "dev", *(f"spool/{node}" for node in self.nodes)):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(self._gpus):  # Slurm wants a character device whose name ends in its index
            with contextlib.suppress(FileExistsError):
                (root / "dev" / f"nvidia{index}").symlink_to("/dev/null")
        munge = f"socket={root}/run/munge.sock" if self._auth == "munge" else ""
        hosts, last = f"gpu[1-{len(self.nodes)}]", len(self.nodes) - 1
        (root / "etc" / "plugstack.conf").write_text("")
        # slurmd loads a cgroup plugin though nothing here uses it; v1 does nothing until it is asked
        (root / "etc" / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        (root / "etc" / "gres.conf").write_text(
            f"NodeName={hosts} Name=gpu Type=h200 Flags=nvidia_gpu_env File={root}/dev/nvidia[0-{self._gpus - 1}]\n"
        )
        accounting = "AccountingStorageType=accounting_storage/none"
        if self._accounting:
            accounting = f"""AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={base + 1}
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
{f"AccountingStoragePass={root}/run/munge.sock" if munge else ""}"""
            self._write_database_config(base, munge)
        self.conf.write_text(f"""ClusterName=lab
SlurmctldHost={socket.gethostname().split(".")[0]}(127.0.0.1)
SlurmctldPort={base}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/{self._auth}
CredType=cred/{self._auth}
# cred_expire is also how long a requeued job waits; less than 5 counts as 120
AuthInfo={",".join(filter(None, [munge, "cred_expire=5"]))}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
PlugStackConfig={root}/etc/plugstack.conf
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MailProg=/bin/true
# one machine plays every node: no cgroups, no binding, claimed size instead of the real one
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
MaxArraySize={self._max_array_size}
# quick tests
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
{accounting}
NodeName={hosts} NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{base + 2}-{base + 2 + last}] \
Sockets=2 CoresPerSocket={self._cpus // 2} ThreadsPerCore=1 RealMemory=512000 Gres=gpu:h200:{self._gpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=7-0 DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=low Nodes=ALL MaxTime=7-0 DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE State=UP
""")

    def _write_database_config(self, base: int, munge: str) -> None:
        root = self.root
        file = root / "etc" / "slurmdbd.conf"
        file.write_text(f"""AuthType=auth/{self._auth}
{f"AuthInfo={munge}" if munge else ""}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={base + 1}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={self._user}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={self._user}
StorageLoc=slurm_acct
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
CommitDelay=0
""")
        file.chmod(0o600)
        (root / "etc" / "my.cnf").write_text(f"""[mariadbd]
datadir={root}/db
socket={root}/run/mysqld.sock
pid-file={root}/run/mariadbd.pid
log-error={root}/log/mariadbd.log
tmpdir={root}/run
user={self._user}
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


def _reap(arguments: Sequence[str]) -> None:
    """Waits for our owner's last word, and stops its cluster when there is none."""
    if not sys.stdin.buffer.read():
        SlurmLab.attach(Path(arguments[0])).stop()


if __name__ == "__main__" and sys.argv[1] == "reap":
    _reap(sys.argv[2:])
