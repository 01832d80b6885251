"""What the pages of a report have in common: the results of one environment, their findings and pictures; pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from bench.backends import BACKENDS
from launcher.analysis.results import Results
from launcher.report.wording import join_words


class Report(msgspec.Struct, frozen=True):
    """Everything that the pages about one environment show.

    ``findings``: its sentences, in order; of several libraries, those that compare them. ``pictures``: SVG texts by
    file name. ``number``: its place, from 0, among the different environments of a run. ``environments_note``: of a run
    in several, which one this is. ``libraries``: of several libraries, the report on each; else empty. ``is_part``:
    this is one of those.
    """

    results: Results
    findings: list[str]
    pictures: Mapping[str, str] = {}
    number: int = 0
    environments_note: str = ""
    libraries: Mapping[str, Report] = {}
    is_part: bool = False

    @property
    def title(self) -> str:
        """The name of the library, or of each."""
        return join_words([BACKENDS[name].title for name in self.results.plan.spec.backends])

    @property
    def has_times(self) -> bool:
        """False where several ranks shared a GPU: then no time of the run may be shown."""
        return not self.results.plan.spec.ep.share_gpus

    @property
    def objective_note(self) -> str:
        """What is minimised, where that is not the round trip; else empty."""
        search = self.results.plan.spec.search
        dispatch, combine = search.weights
        if search.counts_full:
            return (
                "The objective (search.objective) is a forward pass: a full dispatch and a combine. Decisions, ratios, "
                "intervals and the verdict use it; a round trip is a cached dispatch and a combine."
            )
        if dispatch == combine:
            return ""
        return (
            f"The objective (search.objective) is {dispatch:g} x dispatch + {combine:g} x combine. Decisions, ratios, "
            "intervals and the verdict use it; a round trip is the plain sum of both."
        )

    @property
    def findings_title(self) -> str:
        """The heading of the findings, which labels those of a dry run."""
        dry = self.results.plan.is_dry
        if self.libraries:
            return "Which library is the fastest" + (", in a dry run on this CPU" if dry else "")
        return "Key findings" + (" of a dry run on this CPU" if dry else "")

    @property
    def device(self) -> str:
        """The GPU's name."""
        return self.results.environment.device if self.results.environment else "no GPU yet"

    def file_name(self, name: str) -> str:
        """The name of this environment's own copy of a file."""
        return file_name(name, self.number)


def file_name(name: str, number: int) -> str:
    """The name of a file of one of several different environments; the first keeps the plain name."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{number + 1}.{suffix}" if number else name
