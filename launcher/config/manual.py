"""Writes the reference of all configuration, from the comments of the schema and the files of conf/.

  python -m launcher.config.manual [FILE]

It is Markdown: for each part of launcher.sweep and launcher.validate a table of keys with type, default and meaning,
for each group a table of its choices with values and source. Without FILE it goes to stdout; `make docs` writes it to
docs/CONFIGS.md. What `launcher.sweep --help` prints comes from here too; no Hydra is imported, to be quick.

Exit status: 0 written; 2 refused.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from launcher import ROOT
from launcher.errors import OK, USAGE, UserError
from launcher.text import code, table, text

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
  3  points are missing, or a search was cut  1  anything else; 130 it was interrupted here

Files
  outputs/<time>-<id>/OPTIMAL_CONFIGS.md       the report, whose path is all that goes to stdout
  outputs/<time>-<id>/RESULTS_EP<n>.json       the same for programs (docs/results.schema.json)
  outputs/<time>-<id>/shards/*/records.jsonl   every raw sample (docs/RECORDS.md)

See also
  python -m launcher.status RUN, launcher.aggregate RUN, launcher.resume RUN; README.md, docs/METHODOLOGY.md
"""


class ConfigKey(msgspec.Struct, frozen=True):
    """One configuration key: its type and default as written in the schema, and the comment beside it."""

    name: str
    type: str
    default: str
    comment: str


class Section(msgspec.Struct, frozen=True):
    """The keys of one dataclass. ``prefix`` is what stands before each name on the command line."""

    prefix: str
    title: str
    keys: list[ConfigKey]


_SAID = ("name", "source")
"""Keys of a group's file that repeat its name, or its first line."""

_EMPTY = {"list": "[]", "dict": "{}"}
_CONSTANTS = {"None": "null", "True": "true", "False": "false"}

SWEEP = (
    ("config/schema.py", "SweepConf", ""),
    ("config/schema.py", "EpConf", "ep."),
    ("config/schema.py", "WorkloadConf", "workload."),
    ("config/schema.py", "MeasureConf", "measure."),
    ("config/schema.py", "SearchConf", "search."),
    ("config/schema.py", "ShardConf", "shard."),
    ("config/schema.py", "HardwareConf", "hardware."),
    ("config/schema.py", "BackendConf", "backend."),
    ("config/job_options.py", "SubmititConf", "hydra.launcher."),
)
"""File, class and prefix of what launcher.sweep can be told."""

VALIDATE = (
    ("validation/config.py", "ValidateConf", ""),
    ("validation/config.py", "ConfigsConf", "configs."),
    ("validation/config.py", "LimitsConf", "limits."),
    ("validation/config.py", "ThresholdsConf", "thresholds."),
)
"""The same of launcher.validate; it shares hardware, workload, measure, backend and hydra.launcher with the sweep."""


def sections(classes: Sequence[tuple[str, str, str]] = SWEEP) -> list[Section]:
    """Every key, read from the source of the schema."""
    return [_section(ROOT / "launcher" / file, name, prefix) for file, name, prefix in classes]


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
        keys.append(ConfigKey(prefix + node.target.id, kind, default, comment))
    return Section(prefix, (ast.get_docstring(found) or "").split("\n")[0], keys)


def _default(value: ast.expr) -> str:
    if isinstance(value, ast.Call):
        factory = next(one.value for one in value.keywords if one.arg == "default_factory")
        return ast.unparse(factory.body) if isinstance(factory, ast.Lambda) else _EMPTY[ast.unparse(factory)]
    return _CONSTANTS.get(ast.unparse(value), ast.unparse(value).strip("'\""))


def choices(group: str) -> list[str]:
    """The files of a config group."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


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


def reference() -> str:
    """docs/CONFIGS.md: every key of both commands, and every choice of every group."""
    lines = [
        "# Configuration",
        "",
        "Made by `make docs` from the schema and the files of conf/. `key=value` on the command line sets a key,",
        "`group=choice` a whole group. Defaults are those of the schema; the choice of a group sets its own.",
        "",
        "## python -m launcher.sweep",
        "",
        *(line for section in sections() for line in _keys(section)),
        "## python -m launcher.validate",
        "",
        "Besides these it takes `hardware`, `workload`, `measure`, `backend` and `hydra.launcher`, as above.",
        "",
        *(line for section in sections(VALIDATE) for line in _keys(section)),
    ]
    lines += ["## Groups", ""]
    lines += [line for group in _GROUPS for line in _group(group)]
    return "\n".join(lines).rstrip() + "\n"


def _keys(section: Section) -> list[str]:
    cells = [
        [code(key.name), code(key.type), code(key.default) if key.default else "", text(key.comment)]
        for key in section.keys
    ]
    heading = [f"### {section.prefix.removesuffix('.')}", ""] if section.prefix else []
    return [*heading, text(section.title), "", *table(("key", "type", "default", "meaning"), cells)]


def _group(group: str) -> list[str]:
    files = {choice: (ROOT / "conf" / group / f"{choice}.yaml").read_text() for choice in choices(group)}
    values: dict[str, dict[str, Any]] = {choice: yaml.safe_load(content) for choice, content in files.items()}
    names = [name for name in dict.fromkeys(name for one in values.values() for name in one) if name not in _SAID]
    cells = [
        [code(choice), *(_value(values[choice].get(name, "")) for name in names), text(content.partition("\n")[0][2:])]
        for choice, content in files.items()
    ]
    taken = {command: _chosen(command).get(group) for command in ("sweep", "validate")}
    taken_by = ", ".join(f"`{choice}` in launcher.{command}" for command, choice in taken.items() if choice)
    lines = [f"### {group}", "", f"Without a choice it is {taken_by}.", ""]
    return lines + table(("choice", *names, "what"), cells)


def _value(value: object) -> str:
    """As it would stand on the command line."""
    return code(msgspec.json.encode(value).decode().replace('"', "")) if value != "" else ""


def _chosen(command: str) -> dict[str, str]:
    """The choice of each group that a command takes by itself."""
    defaults = yaml.safe_load((ROOT / "conf" / f"{command}.yaml").read_text())["defaults"]
    return {group: choice for one in defaults if isinstance(one, dict) for group, choice in one.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "-h" in given or "--help" in given:
        print(__doc__)
        return OK
    try:
        _write(given)
    except UserError as error:
        error.show()
        return USAGE
    return OK


def _write(given: list[str]) -> None:
    if len(given) > 1:
        raise UserError(f"takes one file, got {' '.join(given)}", hint="python -m launcher.config.manual --help")
    if not given:
        print(reference(), end="")
        return
    try:
        Path(given[0]).write_text(reference())
    except OSError as error:
        raise UserError(f"cannot write {given[0]}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
