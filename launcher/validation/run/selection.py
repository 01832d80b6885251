"""Which nodes of a Slurm cluster are validated, and which are skipped, each with the reason."""

from __future__ import annotations

from ClusterShell.NodeSet import NodeSet, NodeSetException
from ClusterShell.NodeUtils import GroupResolverError, GroupSourceError
from ClusterShell.RangeSet import RangeSetException

from launcher.config.job_options import SubmititConf
from launcher.errors import UserError
from launcher.jobs import slurm
from launcher.jobs.slurm import NodeState
from launcher.validation.config import Options
from launcher.validation.run.folder import Skip

_DOWN = ("down", "drain", "fail", "unk", "powered", "powering", "noresp", "future", "inval", "reboot")


def select(options: Options, settings: SubmititConf) -> tuple[list[str], list[Skip]]:
    """The nodes to validate, idle ones first, and those to skip. UserError if the options name no node."""
    known = slurm.query_nodes(settings.partition)
    where = f"hydra.launcher.partition={settings.partition} has" if settings.partition else "this Slurm has"
    if not known:
        raise UserError(f"{where} no nodes", hint="name a partition that sinfo lists")
    names, skipped = [], []
    for name in sorted(
        _list_names(options, settings, known),
        key=lambda name: name in known and not known[name].state.startswith("idle"),
    ):
        node = known.get(name)
        if node is None:
            skipped.append(Skip(name, "U909", f"{where} no such node"))
        elif is_down(node):
            skipped.append(Skip(name, "U908", why_down(node)))
        else:
            names.append(name)
    if {skip.code for skip in skipped} == {"U909"} and not names:
        raise UserError(f"{where} none of these nodes: {options.nodes}", hint="sinfo -N lists the nodes")
    return names, skipped


def _list_names(options: Options, settings: SubmititConf, known: dict[str, NodeState]) -> list[str]:
    """The nodes of ``nodes=``, of ``node_state=``, or of the reservation."""
    if options.nodes is not None:
        return expand(options.nodes)
    if options.node_state is not None:
        names = sorted(name for name, node in known.items() if node.state.startswith(options.node_state.lower()))
        if not names:
            states = ", ".join(sorted({node.state for node in known.values()}))
            raise UserError(f"no node is {options.node_state}", hint=f"the nodes are {states}")
        return names
    if settings.reservation:
        return expand(slurm.query_reservation(settings.reservation))
    raise UserError(
        "no nodes are named", hint="nodes='gpu[001-016]', node_state=idle, or hydra.launcher.reservation=NAME"
    )


def expand(host_list: str) -> list[str]:
    """The names of a host list, ``gpu[001-016]``. UserError if it is malformed or empty."""
    try:
        names = [str(name) for name in NodeSet(host_list)]
    except (NodeSetException, RangeSetException, GroupResolverError, GroupSourceError) as error:
        raise UserError(
            f"nodes={host_list} is not a host list: {type(error).__name__}: {error}",
            hint="nodes='gpu[001-016],gpu020'",
        ) from None
    if not names:
        raise UserError("nodes= names no node", hint="nodes='gpu[001-016]'")
    return names


def is_down(node: NodeState) -> bool:
    """Whether Slurm starts no job on the node."""
    return node.state.startswith(_DOWN)


def why_down(node: NodeState) -> str:
    """The node's state, and the reason set for it."""
    return f"its state in Slurm is {node.state}" + (f": {node.reason}" if node.reason else "")
