"""Numbers that look measured and are not: what the program is configured to do, definitions, versions, cited facts.

Each is a phrase of a document, with # for a number whose value the program's own tests hold. Whatever somebody measured
belongs into a claim instead.
"""

from __future__ import annotations

from tests.rederived.documents import METHODOLOGY, PUBLISHED, README

_ADMIN = "docs/ADMIN.md"

_CONFIDENCE = {
    README: ["(95 % CI)", "the 95 % CI of default / optimal"],
    PUBLISHED: ["(95 % CI)"],
    "docs/APPLY.md": ["95 % CI does not overlap"],
    METHODOLOGY: [
        "95 % CI",
        '"95 % interval us"',
        "within 1 % of the best with 95 % confidence",
        "nominal coverage of 95 %",
        "kept with 95 % confidence",
    ],
}
"""The level of every interval."""

_VERSIONS = {
    README: ["Python 3.11", "Python 3.12", "nvcc 12.3", "torch 2.8"],
    "docs/SLURM.md": ["nvcc 12.3"],
    "docs/RECORDS.md": ["| run folder | 1 |", "| record lines | 1 |", "| record lines | 2 |"],
}

_EXIT_STATUS = {
    README: ["3 points are missing"],
    _ADMIN: ["every check passed | 0 |", "for you to look at | 2 |", "has this verdict | 2 |", "(U918) | 3 |"],
}

_THRESHOLDS = {
    README: ["lies above 1.02", "(0.02); at most 5 % of comparisons"],
    "docs/APPLY.md": ["within 5 % of the fastest"],
    _ADMIN: [
        *(f"| {rate} | # | # |" for rate in ("copy engine", "kernel", "all-to-all", "dispatch", "combine")),
        "below # of the good nodes' rate is WARN, below # FAIL (GEMMs # / #:",
        "# % / # % below theirs",
        "the median of the others, # / # (GEMMs # / #,",
        "with four GPUs |z| <= 1.5",
        "max(1.4826 MAD, 1 %; GEMMs 3 %)",
        "The limit is 3.5 and",
        "scatter by more than # % (GEMMs # %)",
    ],
    METHODOLOGY: [
        "(interquartile range over median above 10 %)",
        "a point above 10 % is measured again",
        "a one-sided test at 5 %",
        "plus 0.3 % for drift",
        "(two, if they are within 1 %)",
        "the pairs within 0.5 % of the best",
        "those within 0.1 % of the best",
        "lies above 1.02",
        "lies below 1.02",
        "the fewest SMs within 5 % of the fastest",
        "of the pairs within 2 % that",
        "at 5 % with Holm's correction",
        "wholly beyond 1 % of 1",
    ],
}

_CONFIGURED = {
    PUBLISHED: ["slowed on purpose by 1.5 ms", "| 20 | 24 | 32 | 48 | 64 | 128 |"],
    _ADMIN: [
        "slowed on purpose by 1.5 ms",
        "256 MiB between each two GPUs",
        "all-to-all of 64, 256 and 1024 MiB per rank",
        "copies of 256 MiB, an all-to-all of 1024 MiB per rank",
        "4096 x 7168 tokens",
    ],
    "docs/SLURM.md": ["(90 s)"],
    METHODOLOGY: [
        "a write of 256 MiB",
        "a spin of 0.12 ms",
        "spins for 0.12 ms and 1.5 times what the host took",
        "at most 1.2 ms; with GEMMs always 1.2 ms",
        "about every 25 points",
        "60 % for the rounds of a shard",
        "40 % for the final",
        "the GEMMs follow 20 us later",
        "head start of 20 us",
        "1.2 ms let the host queue",
        "20 us ahead of one layer's expert GEMMs",
    ],
}

_SIMULATED = {
    _ADMIN: ["differ by 1 % in each rate, at most 1.1 % of fleets"],
    METHODOLOGY: [
        "default 2 % slower than the best: at least 93 % of 400 intervals",
        "at most 5 % of the verdicts",
        "at least 95 of 100 sweeps",
        "at most 0.05 % slower than the truly fastest",
    ],
}
"""What tests require of simulations: the tests that the sentence names."""

_CITED = {
    PUBLISHED: ["of 450 GB/s (NCCL", "H100 80GB HBM3"],
    _ADMIN: ["NHC and HealthCheckProgram have 30 to 60 s"],
}
"""Datasheets and other programs."""

PHRASES = [
    (document, phrase)
    for kind in (_CONFIDENCE, _VERSIONS, _EXIT_STATUS, _THRESHOLDS, _CONFIGURED, _SIMULATED, _CITED)
    for document, phrases in kind.items()
    for phrase in phrases
]
