"""The manual page of --help, from the comments of the schema and the files of conf/; imports no Hydra, to be quick."""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec

_ROOT = Path(__file__).resolve().parents[1]
_GROUPS = ("hardware", "ep", "workload", "grid", "measure", "search", "backend")
_WIDTH = 30

_HEAD = """\
deepep-sweep - find the best DeepEP configuration of a machine by measuring it

Usage
  python -m launcher.sweep [-m] [group=choice ...] [key=value ...]
  deepep-sweep             the same, with shell completion: eval "$(deepep-sweep -sc install=bash)"

Examples
  python -m launcher.sweep -m                            this machine; a dry run where it has no GPU
  python -m launcher.sweep -m ep=2 workload.dtype=fp8    two GPUs, FP8 dispatch
  python -m launcher.sweep -m grid=full ep=8             more configs, eight GPUs
  python -m launcher.sweep -m hydra/launcher=submitit_slurm hardware=h200 shard.count=4   under Slurm
  python -m launcher.sweep -m dry_run=true hardware=h200 backend=deepep   what would be measured
  python -m launcher.sweep -m run=outputs/RUN            complete an interrupted run
"""

_TAIL = """\
Notes
  -m is implied; --cfg job (without -m) prints the configuration. Failed points are results: they are listed, and make
  the exit status 3 only with strict=true. Without GPU, hardware, backend and launcher named, a small dry run is made.

Exit status
  0  every planned point has a result     2  usage: the plan was refused, nothing was started
  3  points are missing                   1  anything else

Files
  outputs/<time>-<id>/OPTIMAL_CONFIGS.md       the report, whose path is all that goes to stdout
  outputs/<time>-<id>/RESULTS_EP<n>.json       the same for programs (docs/results.schema.json)
  outputs/<time>-<id>/shards/*/records.jsonl   every raw sample (docs/RECORDS.md)

See also
  python -m launcher.status RUN, launcher.aggregate RUN, launcher.resume RUN; README.md, docs/METHODOLOGY.md
"""


class Key(msgspec.Struct, frozen=True):
    """One configuration key: its type and default as written in the schema, and the comment beside it."""

    name: str
    type: str
    default: str
    comment: str


class Section(msgspec.Struct, frozen=True):
    """The keys of one dataclass. ``prefix`` is what stands before each name on the command line."""

    prefix: str
    title: str
    keys: list[Key]


_CLASSES = (
    ("schema.py", "SweepConf", ""),
    ("schema.py", "EpConf", "ep."),
    ("schema.py", "WorkloadConf", "workload."),
    ("schema.py", "MeasureConf", "measure."),
    ("schema.py", "SearchConf", "search."),
    ("schema.py", "ShardConf", "shard."),
    ("schema.py", "HardwareConf", "hardware."),
    ("settings.py", "SubmititConf", "hydra.launcher."),
)


def sections() -> list[Section]:
    """Every key, read from the source of the schema."""
    return [_section(Path(__file__).with_name(file), name, prefix) for file, name, prefix in _CLASSES]


def _section(file: Path, name: str, prefix: str) -> Section:
    source = file.read_text()
    lines = source.splitlines()
    tree = ast.parse(source)
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    keys = []
    for node in found.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.target.id[0] == "_":
            continue
        kind = ast.unparse(node.annotation)
        if kind.endswith("Conf"):
            continue
        default = "" if node.value is None else _default(node.value)
        _, _, comment = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")
        keys.append(Key(prefix + node.target.id, kind, default, comment))
    return Section(prefix, (ast.get_docstring(found) or "").split("\n")[0], keys)


def _default(value: ast.expr) -> str:
    text = ast.unparse(value)
    return {"None": "null", "True": "true", "False": "false"}.get(
        text, "[]" if "default_factory=list" in text else "{}" if "default_factory=dict" in text else text.strip("'\"")
    )


def choices(group: str) -> list[str]:
    """The files of a config group."""
    return sorted(path.stem for path in (_ROOT / "conf" / group).glob("*.yaml"))


def page() -> str:
    """The whole manual page."""
    lines = [_HEAD, "Groups (group=choice)"]
    lines += [f"  {group:<16}{', '.join(choices(group))}" for group in _GROUPS]
    lines += [f"  {'hydra/launcher':<16}basic, submitit_slurm, submitit_local{_sites()}", "", "Keys (key=value)"]
    for section in sections():
        lines.append(f"  {section.title}")
        lines += [f"    {key.name + '=' + key.default:<{_WIDTH}}  {key.comment}".rstrip() for key in section.keys]
    lines += ["    grid.KNOB=[...]                 values of a knob, or {dispatch: [...], combine: [...]}", "", _TAIL]
    return "\n".join(lines)


def _sites() -> str:
    return "".join(f", {name}" for name in choices("hydra/launcher"))
