"""A real, temporary Slurm on this machine, from Debian's packages, without systemd, containers, GPUs or root.

    with SlurmLab() as lab: subprocess.run(["sbatch", ...], env=lab.environ())

Every daemon is a child in the foreground, and all files are in one folder of /tmp with a short name. A small second
process ends the cluster if this one is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from tests.slurm import config_files
from tests.slurm.config_files import Cluster
from tests.slurm.processes import PortBlock, Process, is_listening, process, processes

PACKAGES = "slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core mariadb-client-core"
"""The packages to install with apt-get install --no-install-recommends."""

_DAEMONS = ("slurmctld", "slurmd", "munged", "slurmdbd", "mariadbd")
_SBIN = "/usr/sbin:/usr/local/sbin:/sbin"
_NODE_MARK = "SLURMLAB_NODE"
_ROOT = Path(__file__).resolve().parents[2]
_LIVE = {"PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"}
_UP = {"idle", "mixed", "allocated"}


class SlurmLabError(RuntimeError):
    """The cluster does not respond as expected; the message has the end of the daemon's log."""


def missing() -> list[str]:
    """Daemons that are not installed."""
    return [name for name in _DAEMONS if not _which(name)]


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":" + _SBIN)


def _program(name: str) -> str:
    path = _which(name)
    if not path:
        raise SlurmLabError(f"{name} not found: apt-get install --no-install-recommends {PACKAGES}")
    return path


class SlurmLab:
    """Nodes gpu1, gpu2 ... with fake GPUs; jobs of the partition main preempt those of low."""

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
        self._cluster = Cluster(self.root, num_nodes, gpus, cpus, accounting, auth, max_array_size, base=0)
        self.conf = self.root / "etc" / "slurm.conf"
        self._daemons: dict[str, Process] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: PortBlock | None = None
        self._reaper: subprocess.Popen[bytes] | None = None

    def environ(self, **more: str) -> dict[str, str]:
        """The environment in which Slurm's commands find this cluster."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return clean | {"SLURM_CONF": str(self.conf)} | more

    def command(self, *args: str, check: bool = True) -> str:
        """The output of a Slurm command."""
        done = subprocess.run(args, env=self.environ(), text=True, capture_output=True, timeout=60, check=False)
        if check and done.returncode:
            raise SlurmLabError(f"{' '.join(args)}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

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
        self._ports = PortBlock(2 + len(self.nodes))
        root, base = self.root, self._ports.base
        config_files.write(self._cluster._replace(base=base))
        self._save()
        if self._reaper is None:
            self._reaper = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, "reap", str(root)],
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        if self._cluster.accounting:
            self._install_database()
            self._spawn("mariadbd", _program("mariadbd"), f"--defaults-file={root}/etc/my.cnf")
        if self._cluster.auth == "munge":
            self._start_munge()
        if self._cluster.accounting:
            self._wait("mariadbd", (root / "run" / "mysqld.sock").exists)
            self._spawn("slurmdbd", _program("slurmdbd"), "-D", MYSQL_UNIX_PORT=f"{root}/run/mysqld.sock")
            self._wait("slurmdbd", lambda: is_listening(base + 1))
        self._start_controller()
        for node in self.nodes:
            self.start_node(node, wait=False)
        self.wait_nodes(*self.nodes)

    def _start_controller(self) -> None:
        assert self._ports is not None
        base = self._ports.base
        self._spawn("slurmctld", _program("slurmctld"), "-D", "-i", "-f", str(self.conf))
        self._wait("slurmctld", lambda: is_listening(base))

    @contextlib.contextmanager
    def without_controller(self) -> Iterator[None]:
        """A context without a controller, as during its restart; jobs continue."""
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
        """Creates the system tables of an empty database."""
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
        """Starts a node's slurmd and, with ``wait``, waits until Slurm accepts the node."""
        daemon = f"slurmd-{node}"
        self._spawn(daemon, _program("slurmd"), "-D", "-N", node, "-f", str(self.conf), **{_NODE_MARK: node})
        self._resume_down()
        if wait:
            self.wait_nodes(node)

    def kill_node(self, node: str) -> None:
        """Crashes a node: kills its slurmd and all its processes at once, and marks it as down."""
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
        daemon = process(child.pid)
        self._children[name] = child
        if daemon is not None:
            self._daemons[name] = daemon
        self._save()

    def _save(self) -> None:
        """Writes the state that the reaper reads."""
        (self.root / "run" / "daemons.json").write_text(json.dumps(self._daemons))

    def _alive(self, name: str) -> bool:
        if name in self._children:
            return self._children[name].poll() is None
        known = self._daemons.get(name)
        current = process(known.pid) if known else None
        return current is not None and known is not None and current.start == known.start

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

    def node_states(self) -> dict[str, str]:
        """The state of each node from sinfo."""
        out = self.command("sinfo", "-h", "-N", "-o", "%N %T", "-p", "main", check=False)
        return dict(map(str.split, out.splitlines()))

    def _resume_down(self) -> None:
        for node, state in self.node_states().items():
            if state.startswith(("down", "drain")):
                self.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def wait_nodes(self, *nodes: str) -> None:
        """Waits until Slurm accepts these nodes."""
        deadline = time.monotonic() + 30
        while not all(self.node_states().get(node) in _UP for node in nodes):
            if time.monotonic() > deadline:
                raise SlurmLabError(f"nodes are {self.node_states()}\n{self._log('slurmctld')}")
            time.sleep(0.05)

    def jobs(self) -> dict[str, str]:
        """The state of every job and array task that slurmctld remembers, by id."""
        return dict(map(str.split, self.command("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()))

    def alive(self) -> list[str]:
        """Ids of the jobs that have not ended."""
        return [job for job, state in self.jobs().items() if state in _LIVE]

    def reset(self) -> None:
        """Ends all jobs and their processes, and waits until every node is idle."""
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
        """Ids of slurmstepd, of the processes of this cluster's jobs (on one node) and of all their descendants.

        slurmstepd inherits the environment of slurmd, whose mark names the node; the processes of a job have
        SLURMD_NODENAME. All have the SLURM_CONF of this cluster.
        """
        pids: set[int] = set()
        children: dict[int, list[int]] = {}
        for entry in processes():
            children.setdefault(entry.parent, []).append(entry.pid)
            environment = entry.environment
            if environment.get("SLURM_CONF") != str(self.conf):
                continue
            at = environment.get(_NODE_MARK if entry.name == "slurmstepd" else "SLURMD_NODENAME")
            if at is not None and entry.name != "slurmd" and node in (None, at):
                pids.add(entry.pid)
        todo = list(pids)
        while todo:
            more = [child for child in children.get(todo.pop(), ()) if child not in pids]
            pids.update(more)
            todo += more
        return sorted(pids - {os.getpid()})

    def _kill_job_processes(self, node: str | None = None) -> None:
        for _ in range(50):
            pids = self.job_processes(node)
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _kill_all(self) -> None:
        """Kills Slurm first, which then restarts nothing; no state needs saving."""
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


def _reap(arguments: Sequence[str]) -> None:
    """Waits for the owner to end, and stops its cluster unless the owner did."""
    if not sys.stdin.buffer.read():
        SlurmLab.attach(Path(arguments[0])).stop()


if __name__ == "__main__" and sys.argv[1] == "reap":
    _reap(sys.argv[2:])
