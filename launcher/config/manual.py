"""The manual page of launcher.sweep, and the reference of all configuration: docs/CONFIGS.md.

Both come from the comments of the schema and the files of conf/, which are read as text, and from the declarations of
the libraries: no Hydra is imported, and ``--help`` is quick.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from bench.backends import BACKENDS
from launcher import errors
from launcher.config import groups
from launcher.errors import ROOT, UserError
from launcher.text import code, table, text

_GROUPS = ("hardware", "ep", "workload", "grid", "measure", "search", "backend")

MANUAL = """\
launcher.config.manual - write the reference of all configuration

Usage
  python -m launcher.config.manual [FILE]

Arguments
  FILE        where to write it; stdout without this argument

Options
  -h, --help  print this page
  --version   print the version

Description
  The reference is Markdown. It has a table for each part of the configuration of launcher.sweep and launcher.validate
  (key, type, default, meaning) and a table for each group (choices, values, source). `make docs` writes it to
  docs/CONFIGS.md.

Exit status
  0  written
  2  refused
"""

_HEAD = """\
deepep-sweep - find the best configuration of DeepEP and NCCL EP for your GPUs by measuring it

Usage
  python -m launcher.sweep [group=choice ...] [key=value ...]
  deepep-sweep                 the same, where the package is installed

Options
  --cfg job         print the configuration and stop
  -m                implied; accepted as in other Hydra programs
  -sc install=bash  print the shell completion: eval "$(deepep-sweep -sc install=bash)"
  -h, --help        print this page
  --version         print the version

Description
  Plans the points of a grid, measures them round by round, measures the best again in fresh processes, and writes a
  report. Every timed config is first checked for correctness. On a machine without GPUs, unless hardware, backend or
  hydra/launcher is given, a small dry run on CPUs tests the whole path.

  Failed points are results: the report lists them. A list of values, ep=2,4, is one sweep per value.
"""

_KNOBS = """\
  Values of one knob in the grid, for every library that has it; for each operation; for one library.
    grid.KNOB=[8,16], grid.KNOB={dispatch:[8,16],combine:[8]}, grid.KNOB.LIBRARY=[8,16]
  Several libraries in one sweep, which compares them. backend=deepep,nccl_ep is two sweeps.
    backend=[deepep,nccl_ep]
"""

_TAIL = """\
Exit status
  0    every planned point has a result
  1    any other failure
  2    usage: a sweep was refused before it started; of several (ep=2,4) on this machine, those before it are done
  3    points are missing, or a search is incomplete; with strict=true, also if a point failed
  130  interrupted; python -m launcher.resume RUN continues

Files
  outputs/<time>-<id>/OPTIMAL_CONFIGS.md       the report; its path is the only output on stdout
  outputs/<time>-<id>/RESULTS_EP<n>.json       the same for programs (docs/results.schema.json)
  outputs/<time>-<id>/shards/*/records.jsonl   every raw sample (docs/RECORDS.md)

Examples
  python -m launcher.sweep                               this machine; a dry run without GPUs
  python -m launcher.sweep ep=2 workload.dtype=fp8       two GPUs, FP8 dispatch
  python -m launcher.sweep grid=full ep=8                more configs, eight GPUs
  python -m launcher.sweep hydra/launcher=submitit_slurm hardware=h200 shard.count=4   under Slurm, in four jobs
  python -m launcher.sweep dry_run=true hardware=h200    print the plan for another machine
  python -m launcher.sweep run=outputs/RUN               complete the run of the same command

See also
  python -m launcher.status RUN, launcher.resume RUN, launcher.aggregate RUN; README.md, docs/CONFIGS.md, docs/SLURM.md
"""


class ConfigKey(msgspec.Struct, frozen=True):
    """One configuration key: type and default as written in the schema, and the comment behind them."""

    name: str
    type: str
    default: str
    comment: str


class Section(msgspec.Struct, frozen=True):
    """The keys of one dataclass. ``prefix`` precedes each name on the command line."""

    prefix: str
    title: str
    keys: list[ConfigKey]


_REPEATED = ("name", "source")
"""Keys of a group's file that repeat its name or its first line."""

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
"""File, class and prefix of each part of launcher.sweep's configuration."""

VALIDATE = (
    ("validation/config.py", "ValidateConf", ""),
    ("validation/config.py", "ConfigsConf", "configs."),
    ("validation/config.py", "LimitsConf", "limits."),
    ("validation/config.py", "ThresholdsConf", "thresholds."),
)
"""The same for launcher.validate. It shares hardware, workload, measure, backend and hydra.launcher with the sweep."""


def sections(classes: Sequence[tuple[str, str, str]] = SWEEP) -> list[Section]:
    """Every key, from the source text of the schema."""
    return [_section(ROOT / "launcher" / file, name, prefix) for file, name, prefix in classes]


def _section(file: Path, name: str, prefix: str) -> Section:
    source = file.read_text()
    lines = source.splitlines()
    tree = ast.parse(source)
    schema = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    keys = []
    for node in schema.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.target.id[0] == "_":
            continue
        kind = ast.unparse(node.annotation)
        if kind.endswith("Conf"):
            continue
        default = "" if node.value is None else _default(node.value)
        _, _, comment = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")
        keys.append(ConfigKey(prefix + node.target.id, kind, default, comment))
    return Section(prefix, (ast.get_docstring(schema) or "").split("\n")[0], keys)


def _default(value: ast.expr) -> str:
    if isinstance(value, ast.Call):
        factory = next(keyword.value for keyword in value.keywords if keyword.arg == "default_factory")
        return ast.unparse(factory.body) if isinstance(factory, ast.Lambda) else _EMPTY[ast.unparse(factory)]
    return _CONSTANTS.get(ast.unparse(value), ast.unparse(value).strip("'\""))


def choices(group: str) -> list[str]:
    """The choices of a config group: its files, or its nodes."""
    if group in groups.GROUPS:
        return list(groups.meanings(group))
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def page() -> str:
    """The manual page of launcher.sweep."""
    lines = [_HEAD, "Groups (group=choice)"]
    lines += [f"  {group:<16}{', '.join(choices(group))}" for group in _GROUPS]
    lines += [f"  {'hydra/launcher':<16}basic, submitit_slurm, submitit_local{_sites()}"]
    lines += [line for group in groups.GROUPS for line in _meanings(group)]
    lines += ["", "Keys (key=value)"]
    for section in sections():
        settings = [f"{key.name}={key.default}" for key in section.keys]
        width = max(map(len, settings))
        lines.append(f"  {section.title}")
        lines += [
            f"    {setting:<{width}}  {key.comment}".rstrip()
            for setting, key in zip(settings, section.keys, strict=True)
        ]
    return "\n".join([*lines, _KNOBS, _TAIL])


def _meanings(group: str) -> list[str]:
    """What each choice of a group of declarations is; for a grid also how many configs each library has."""
    lines = [f"  {group}{'; configs of each library for one operation, rules aside' if group == 'grid' else ''}"]
    for choice, meaning in groups.meanings(group).items():
        lines.append(f"    {choice:<14}{meaning}")
        if group == "grid":
            lines.append(f"    {'':<14}{_sizes(choice)}")
    return lines


def _sizes(grid: str) -> str:
    return ", ".join(f"{library} {size}" for library, size in groups.sizes(grid).items())


def _sites() -> str:
    return "".join(f", {name}" for name in choices("hydra/launcher"))


def reference() -> str:
    """docs/CONFIGS.md: every key of both commands, and every choice of every group."""
    lines = [
        "# Configuration",
        "",
        "Written by `make docs` from the schema, the files of conf/ and the declarations of the libraries. On the",
        "command line, `key=value` sets one key, `group=choice` a whole group. The defaults are those of the schema;",
        "the choice of a group may set others.",
        "",
        "## python -m launcher.sweep",
        "",
        *(line for section in sections() for line in _keys(section)),
        "## python -m launcher.validate",
        "",
        "It also takes `hardware`, `workload`, `measure`, `backend` and `hydra.launcher`, as above.",
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
    defaults = {command: _default_choices(command).get(group) for command in ("sweep", "validate")}
    listed = ", ".join(f"`{choice}` in launcher.{command}" for command, choice in defaults.items() if choice)
    lines = [f"### {group}", "", f"Default: {listed}.", ""]
    return lines + {"grid": _grids, "backend": _backends}.get(group, lambda: _files(group))()


def _files(group: str) -> list[str]:
    """A table of the files of a group."""
    files = {choice: (ROOT / "conf" / group / f"{choice}.yaml").read_text() for choice in choices(group)}
    values: dict[str, dict[str, Any]] = {choice: yaml.safe_load(content) for choice, content in files.items()}
    names = [name for name in dict.fromkeys(name for keys in values.values() for name in keys) if name not in _REPEATED]
    cells = [
        [code(choice), *(_value(values[choice].get(name, "")) for name in names), text(content.partition("\n")[0][2:])]
        for choice, content in files.items()
    ]
    return table(("choice", *names, "what"), cells)


def _backends() -> list[str]:
    """What each choice of backend is, and the knobs of each library."""
    meanings = [[code(choice), text(meaning)] for choice, meaning in groups.meanings("backend").items()]
    knobs = [
        [code(backend.name), code(knob.name), "yes" if knob.shared else "", text(knob.meaning)]
        for backend in BACKENDS.values()
        for knob in backend.knobs
    ]
    return [*table(("choice", "what"), meanings), *table(("library", "knob", "one for both operations", "what"), knobs)]


def _grids() -> list[str]:
    """The values of each library in each grid, and how many configs they are for one operation."""
    meanings = [[code(choice), text(meaning)] for choice, meaning in groups.meanings("grid").items()]
    cells = [
        [code(choice), code(library), size, "; ".join(f"{name} {_value(axis)}" for name, axis in axes.items())]
        for choice in choices("grid")
        for library, size in groups.sizes(choice).items()
        for axes in (BACKENDS[library].grids[choice],)
    ]
    return [*table(("choice", "what"), meanings), *table(("choice", "library", "configs", "values"), cells)]


def _value(value: object) -> str:
    """The value as on the command line."""
    return code(msgspec.json.encode(value).decode().replace('"', "")) if value != "" else ""


def _default_choices(command: str) -> dict[str, str]:
    """The choice of each group that a command makes by default."""
    defaults = yaml.safe_load((ROOT / "conf" / f"{command}.yaml").read_text())["defaults"]
    return {group: choice for entry in defaults if isinstance(entry, dict) for group, choice in entry.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    return errors.run(lambda: MANUAL, _write, arguments)


def _write(given: list[str]) -> int:
    parser = errors.Parser("launcher.config.manual")
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path)
    file: Path | None = parser.parse_args(given).file
    if file is None:
        print(reference(), end="")
        return errors.OK
    try:
        file.write_text(reference())
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None
    return errors.OK


if __name__ == "__main__":
    sys.exit(main())
