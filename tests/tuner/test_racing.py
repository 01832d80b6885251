"""The search finds the truly fastest config with a fraction of the repetitions."""

from __future__ import annotations

import numpy as np
import pytest

from bench.records import Role, Stage
from launcher.tuner import racing
from launcher.tuner.racing import Arms
from tests.tuner.machine import Machine, make_plan, simulate_sweep


@pytest.mark.slow  # simulates many sweeps
def test_the_fastest_of_620_configs_is_found_within_a_twentieth_of_a_percent_on_average():
    """Nodes, hours, spikes and processes differ; the pair that breaks a tie costs almost nothing."""
    grid = {"sms": [16, 24, 32, 40, 48, 64, 80, 96, 112, 128], "chunks": list(range(2, 64, 2)), "num_shards": 4}
    runs = [simulate_sweep(seed, default_factor=2.0, **grid) for seed in range(12)]
    assert len(runs[0].machine.plan.cells) == 620
    assert [one.choice.verdict.kind for one in runs] == ["tuned"] * len(runs)
    assert np.mean([one.regret_of(one.choice.tied[0]) for one in runs]) <= 0.0005
    assert np.mean([one.regret_of(one.choice.optimal) for one in runs]) <= 0.0005


def test_racing_takes_at_most_a_third_of_the_repetitions_of_an_exhaustive_search():
    repetitions = {}
    for method in ("racing", "exhaustive"):
        plan = make_plan(sms=[16, 24, 48, 128], chunks=list(range(2, 32, 2)), method=method)
        machine = Machine(plan, seed=1, default_factor=2.0)
        repetitions[method] = sum(r.stage is Stage.SWEEP and r.role is Role.GRID for r in machine.run())
    assert repetitions["racing"] <= repetitions["exhaustive"] / 3


def test_an_interrupted_search_continues_from_the_same_point():
    plan = make_plan(sms=[16, 24], chunks=[4, 8, 12])
    records = [r for r in Machine(plan, seed=4, default_factor=2.0).run() if r.stage is Stage.SWEEP]
    for cut in range(0, len(records), 7):
        next_round = racing.next_round(plan, plan.shard(0), Arms(records[:cut]))
        number, cells = next_round or (0, [])
        assert cells or all(record.role is Role.ANCHOR for record in records[cut:])
        measured = {(r.point_id, r.round) for r in records[:cut]}
        assert not any((cell.id, number) in measured for cell in cells)
    assert racing.next_round(plan, plan.shard(0), Arms(records)) is None
