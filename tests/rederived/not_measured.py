"""Numbers that look measured and are not: what the program is configured to do, definitions, versions, cited facts.

Each is a phrase of a document, with # for a number whose value the program's own tests hold. Whatever somebody measured
belongs into a claim instead.
"""

from __future__ import annotations

from tests.rederived.documents import METHODOLOGY, PUBLISHED, README

_ADMIN = "docs/ADMIN.md"

_CONFIDENCE = {
    README: [
        "(95 % CI)",
        "is surely within 2 % of the fastest; with 95 % confidence",
        "the 95 % CI of the default's time",
    ],
    PUBLISHED: ["(95 % CI)"],
    "docs/APPLY.md": ["95 % CI does not overlap"],
    METHODOLOGY: [
        "95 % CI",
        "95 % interval for what a run on other GPUs of the kind",
        '"95 % interval us"',
        "within 1 % of the best with 95 % confidence",
        "with 95 % confidence for all pairs together",
        "one-sided 95 % limit",
        "contain 1 in 95 % of all runs",
        "in the median and in 95 % of the iterations",
        "the upper 95 % limit of the Q profile",
        "The 95 % interval for **another run**",
        "so many lie outside a 95 % interval",
    ],
}
"""The level of every interval."""

_VERSIONS = {
    README: ["Python 3.11", "Python 3.12", "nvcc 12.3", "torch 2.8"],
    "docs/SLURM.md": ["nvcc 12.3"],
    "docs/RECORDS.md": ["| run folder | 1 |", "| record lines | 1 |", "| record lines | 2 |", "| record lines | 3 |"],
}

_EXIT_STATUS = {
    README: ["3 points are missing"],
    _ADMIN: ["every check passed | 0 |", "for you to look at | 2 |", "has this verdict | 2 |", "(U918) | 3 |"],
}

_THRESHOLDS = {
    README: [
        "lies above 1.02",
        '"Slower" means significantly above `--tolerance` (0.02). At most 5 % of comparisons',
        "Configs beyond 2047 MiB",
    ],
    "docs/APPLY.md": ["within 5 % of the fastest"],
    _ADMIN: [
        *(f"(# x {gpu}) | # | # |" for gpu in ("H100", "H200")),
        "Below # of such a rate a node is **WARN",
        "A floor is #, and for FAIL #, of what the slowest healthy published machine reached (# for FAIL of the copy "
        "engine), so the slowest healthy machine has about # % of room",
        "only on links of at most 500 GB/s",
        "a rate below # of a [published reference]",
        "below # of the good nodes' rate is WARN, below # FAIL (GEMMs of one GPU # / #: good GPUs differ, # was seen); "
        "a tail of slow blocks # % / # % below theirs",
        "is 3.5 x sqrt((1 %)² + (2 %)² / GPUs) x sqrt(1 + 1 / n): for four GPUs 7.0 % with a published reference, 5.4 "
        "% with one of five nodes",
        "the median of the others, # / # (GEMMs # / #,",
        "with four GPUs |z| <= 1.5",
        "max(1.4826 MAD, 1 %)",
        "The limit is 3.5 and",
        "sqrt((1 %)² + s² / GPUs): s is the scatter of the GPUs inside a node, estimated from all nodes, at least 2 %",
        "slower by 3.5 % or more",
        "scatter by more than # % (GEMMs # %)",
    ],
    METHODOLOGY: [
        "(interquartile range over median above 10 %)",
        "a point above 10 % is measured again",
        "a one-sided test at 5 %",
        "plus 0.3 % for drift",
        "(two, if they are within 1 %)",
        "the pairs within 0.5 % of the best",
        "those within 0.3 % of the best",
        "buffers of 2 GiB and more",
        "scatter by more than 10 %, or whose median is more than 2 % away",
        "with half of the 5 %",
        "At the default tolerance of 2 %",
        "tolerances below 2 %",
        "are refused below 2 %",
        "differ by more than 4 %",
        "lies above 1.02",
        "lies below 1.02",
        "the fewest SMs within 5 % of the fastest",
        "surely within 2 % of it",
        "until none is left or 30 s have passed",
        "at most 2 % for the pick",
        "within 2 % of it. The pick",
        "at least 10 % longer than the pair's fast ones",
        "wholly beyond 1 % of 1",
    ],
}

_CONFIGURED = {
    PUBLISHED: ["slowed on purpose by 1.5 ms", "buffers beyond 2047 MiB", "| 20 | 24 | 32 | 48 | 64 | 128 |"],
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
        "contain the 20 us of the head start",
        "a difference of more than 20 us, the fixed time",
        "1.2 ms let the host queue",
        "20 us ahead of one layer's expert GEMMs",
    ],
}

_SIMULATED = {
    _ADMIN: [
        "Where healthy nodes differ by 1 % in each rate, about 1 % of fleets are flagged wrongly; where they differ by "
        "2 %, 7 % of fleets",
        "is off by 1 % (standard deviation)",
        "the GEMMs of each GPU by 2 % more",
        "10,000 nodes of each kind",
        *(
            f"| {machine}, {state} | # % | # % | # % |"
            for machine in ("4 x H200", "2 x H100")
            for state in ("healthy", "dispatch and combine # % slower")
        ),
        "differ by 2 % in each rate, 4 to 6 % of 1,500 healthy nodes of each kind are WARN and none FAIL, and 98.6 to "
        "99.3 % of the slow ones",
        "| fleets of | 4 | 8 | 16 | 64 |",
        "| 5,000 | 2,500 | 1,250 | 312 |",
        *(f"flagged, {machine} | # % | # % | # % | # % |" for machine in ("4 x H200", "2 x H100")),
        *(
            f"| GEMMs of one node {slower} % slower: found, {machine} | # % | # % | # % | # % |"
            for slower, machine in ((7, "4 x H200"), (10, "4 x H200"), (10, "2 x H100"), (15, "2 x H100"))
        ),
    ],
    METHODOLOGY: [
        "a default exactly 2 % slower than configs that are all alike",
        "covered 88 to 92 % with 7 to 12 % wrongly",
        "1,000 sweeps: 94.6 % of the verdict's intervals contained the true ratio, 3.2 % of the verdicts were wrongly",
        "with a default as fast as the others 95.0 % and none",
        "1,000 sweeps: 95.5 % and 2.0 %; with a default as fast as the others 95.9 % and none",
        "60 sweeps: the chosen pair was 0.02 % (+-0.01) slower",
        "a default that is truly 1.5 % slower",
        "(0.5, 1 or 2 %), 1 % raise a false alarm where runs scatter by 0.35 %, 4 % of equal runs do so at a tolerance "
        "of 0, and none where they scatter by 0.23 %",
        "a config that is 4 % slower is found in 95 % of simulated comparisons on the same GPUs if it is deployed, "
        "otherwise in 70 %, and one that is 5 % slower always. On other GPUs, 5 % are found in 88 % and 53 %, and 7 % "
        "always",
    ],
}
"""What simulations gave: tests that the text names repeat them, with fewer sweeps or nodes."""

_CITED = {
    PUBLISHED: ["of 450 GB/s (NCCL", "H100 80GB HBM3"],
    _ADMIN: ["2 x NVIDIA H100 80GB HBM3 | 1 |", "4 x NVIDIA H200 | 1 |", "NHC and HealthCheckProgram have 30 to 60 s"],
}
"""Datasheets and other programs."""

PHRASES = [
    (document, phrase)
    for kind in (_CONFIDENCE, _VERSIONS, _EXIT_STATUS, _THRESHOLDS, _CONFIGURED, _SIMULATED, _CITED)
    for document, phrases in kind.items()
    for phrase in phrases
]
