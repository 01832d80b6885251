"""The user's own configs, search.candidates: which library each belongs to; pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.backends import BACKENDS
from launcher.config.schema import Spec
from launcher.errors import UserError


def of_library(spec: Spec, backend: str) -> list[list[int]]:
    """The configs of one library, each a value for every knob.

    Of a plain list each belongs to the first library of the sweep with as many knobs.
    """
    candidates = spec.search.candidates
    if isinstance(candidates, dict):
        return candidates.get(backend, [])
    return [values for values in candidates if _owner(spec, values) == backend]


def check(spec: Spec) -> None:
    """UserError for a library that is not measured, and for a config without a value for every knob."""
    candidates = spec.search.candidates
    if isinstance(candidates, dict):
        for name, configs in candidates.items():
            if name not in spec.backends:
                raise UserError(
                    f"search.candidates must name libraries of this sweep ({', '.join(spec.backends)}), got {name}",
                    hint="backend=[...] names the libraries of a sweep",
                )
            _check_lengths(configs, [name])
    else:
        _check_lengths(candidates, spec.backends)


def _owner(spec: Spec, values: Sequence[int]) -> str | None:
    return next((name for name in spec.backends if len(BACKENDS[name].knobs) == len(values)), None)


def _check_lengths(configs: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    knobs = {name: [knob.name for knob in BACKENDS[name].knobs] for name in names}
    lengths = [len(each) for each in knobs.values()]
    for values in configs:
        if len(values) not in lengths:
            orders = [f"{', '.join(each)}{f' ({name})' if len(knobs) > 1 else ''}" for name, each in knobs.items()]
            raise UserError(
                f"search.candidates must hold configs of {' or '.join(map(str, lengths))} numbers, got {values}",
                hint=f"their order is {'; '.join(orders)}",
            )
