"""The skew of the ranks' start, measured on real ranks of which one starts late."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from queue import Queue

import pytest
import torch
import torch.distributed as dist

from bench.backends.sessions.session import Context
from bench.rank.alignment import time_signals
from bench.rank.timing import HostTimer, Operation, Series
from bench.records import Alignment
from launcher.analysis.alignment import spreads_us
from tests.builders import small_workload

LATE_S = 0.05
ITERATIONS = 5


class LateTimer(HostTimer):
    """Starts every iteration late."""

    def measure(self, operation: Operation, *, warmup: int, iterations: int, **_: object) -> Series:
        """See HostTimer; the time between the alignment and the start is in no sample."""
        total_us = []
        for _ in range(iterations):
            dist.barrier(group=self._group)
            time.sleep(LATE_S)
            begin = time.perf_counter()
            operation(lambda: None)
            total_us.append(1e6 * (time.perf_counter() - begin))
        return Series(total_us, [])


def measure(rank: int, late: int, store: str, found: Queue[tuple[int, list[list[float]]]]) -> None:
    """One of three ranks; ``late`` is the one that starts late."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    group = dist.group.WORLD
    assert group is not None
    device = torch.device("cpu")
    context = Context(rank, 3, device, small_workload(), group, group)
    timer = (LateTimer if rank == late else HostTimer)(group, device)
    signals = time_signals(timer, context, warmup=0, iterations=ITERATIONS, hold_us=3e6 * LATE_S)
    found.put((rank, signals))


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 2])
def test_a_rank_that_starts_late_is_found_without_a_clock_that_ranks_share(late: int, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    found = spawn.Queue()
    ranks = [spawn.Process(target=measure, args=(rank, late, str(tmp_path / "store"), found)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    samples = dict(found.get(timeout=120) for _ in ranks)
    for rank in ranks:
        rank.join()
    line = Alignment([samples[rank][0] for rank in (1, 2)], [samples[0][rank] for rank in (1, 2)], group=0)
    assert sorted(spreads_us(line))[ITERATIONS // 2] >= 0.8e6 * LATE_S
