"""The limit on a config's buffer, search.max_buffer_mib; pure."""

from __future__ import annotations

import math

from bench.backends import Backend
from bench.rules import Facts, Violation
from launcher.config.hardware import facts_of
from launcher.config.plan import Plan
from launcher.config.schema import Search

_MIB = 2**20


def facts_of_plan(plan: Plan) -> Facts:
    """What rules may depend on, for the GPUs of a plan."""
    spec = plan.spec
    return facts_of(spec.hardware, spec.workload, num_ranks=spec.ep.size)


def is_too_large(search: Search, backend: Backend, knobs: dict[str, int], facts: Facts) -> bool:
    """Whether a config's buffer exceeds the limit, as far as the library has a formula for it."""
    size = backend.buffer_bytes(knobs, facts)
    return search.max_buffer_mib is not None and size is not None and size > search.max_buffer_mib * _MIB


def buffer_violations(search: Search, backend: Backend, knobs: dict[str, int], facts: Facts) -> list[Violation]:
    """The limit, where a config breaks it.

    deep_ep asserts that a buffer is below 2 GiB where it also has an RDMA buffer, as in SGLang's default mode.
    """
    if not is_too_large(search, backend, knobs, facts):
        return []
    size = math.ceil((backend.buffer_bytes(knobs, facts) or 0) / _MIB)
    rule = f"keep the buffer within {search.max_buffer_mib:g} MiB (search.max_buffer_mib)"
    hint = f"search.max_buffer_mib={size} allows it; 2 GiB and more fail beside an RDMA buffer"
    return [Violation("grid." + backend.knobs[-1].name, rule, f"{size} MiB", hint)]
