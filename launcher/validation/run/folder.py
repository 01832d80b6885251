"""The folder of one validation: its order, the nodes' results, and the reports."""

from __future__ import annotations

import fcntl
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher.errors import UserError
from launcher.store.files import write_atomic
from launcher.validation import node as nodes
from launcher.validation.config import Spec
from launcher.validation.node import Node


class Skip(msgspec.Struct, frozen=True):
    """A node that no job was submitted for."""

    node: str
    code: str
    why: str


class Order(msgspec.Struct, frozen=True):
    """order.json: which nodes to validate and how, and their jobs.

    ``jobs``: the job of each node. ``states``: the last known state of each job. ``until``: when the last job must have
    ended (Unix time). ``lanes``, ``settings`` (hydra.launcher) and ``deadline`` (Unix time): to submit a job again.
    ``earlier``: the folder of an earlier validation, part of the fleet.
    """

    format: Literal[1]
    created: float
    command: list[str]
    spec: Spec
    nodes: list[str]
    skipped: list[Skip] = []
    jobs: dict[str, str] = {}
    until: float | None = None
    states: dict[str, str] = {}
    lanes: dict[str, int] = {}
    settings: dict[str, Any] = {}
    deadline: float | None = None
    earlier: str | None = None


class ValidationFolder:
    """The paths of a validation, and every access to them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.order_file = path / "order.json"
        self.code = path / "code"

    @classmethod
    def create(cls, outputs: Path, path: Path | None) -> ValidationFolder:
        """A new folder. UserError if it cannot be made."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-nodes-{secrets.token_hex(2)}"
        folder = cls(path or outputs / name)
        try:
            folder.path.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            raise UserError(
                f"run={folder.path} exists, but is not a validation folder", hint="choose another path"
            ) from None
        except OSError as error:
            raise UserError(f"cannot make {folder.path}: {error.strerror}", hint="outputs=FOLDER") from None
        return folder

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def order(self) -> Order:
        """The order. UserError if this is not a validation folder."""
        try:
            return msgspec.json.decode(self.order_file.read_bytes(), type=Order)
        except OSError as error:
            raise UserError(f"{self.path} is not a validation folder: {error.strerror}: order.json") from None
        except msgspec.DecodeError as error:
            raise UserError(f"{self.order_file} cannot be read: {error}") from None

    def note(self, order: Order) -> None:
        """Replaces order.json."""
        write_atomic(self.order_file, msgspec.json.format(msgspec.json.encode(order), indent=1) + b"\n")

    def node_folder(self, node: str) -> Path:
        """The folder of one node."""
        return self.path / "nodes" / node

    def began(self, node: str) -> bool:
        """Whether the validation of a node got as far as writing anything."""
        return self.node_folder(node).is_dir()

    def is_running(self, node: str) -> bool:
        """Whether a process validates the node now, as far as locks show it."""
        try:
            with (self.node_folder(node) / nodes.LINES_NAME).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def result(self, node: str) -> Node | None:
        """A node's file; None if there is none yet."""
        file = self.node_folder(node) / nodes.FILE_NAME
        return nodes.read(file) if file.is_file() else None
