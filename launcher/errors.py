"""What all commands share: exit statuses, errors of one line, the frame of a command, the program's folder and version.

--help waits for every import here: this module takes nothing but the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, TextIO

ROOT: Final = Path(__file__).resolve().parents[1]
"""The folder of bench, launcher, conf and hydra_plugins: a checkout, a job's copy of the code, or site-packages."""

_NAME = "deepep-sweep"

OK, FAILURE, USAGE, MISSING = 0, 1, 2, 3
"""Exit statuses: nothing is missing; any other failure; refused before anything started; points are missing."""

INTERRUPTED, UNREAD = 130, 141
"""Exit statuses after Ctrl-C, and when the reader of the output has gone, as a shell reports SIGINT and SIGPIPE."""


class UserError(Exception):
    """An error that the user can fix. ``hint`` says how."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def show(self) -> None:
        """Prints the one or two lines to stderr."""
        print(f"error: {self}", file=sys.stderr)
        if self.hint:
            print(f"hint: {self.hint}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Parses the arguments of a command; raises UserError where argparse would print its usage and exit."""

    def __init__(self, module: str) -> None:
        """``module`` as in ``python -m module``."""
        super().__init__(prog=f"python -m {module}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(message, hint=f"{self.prog} --help")


class Statuses(NamedTuple):
    """Exit statuses that the frame decides. A Nagios plugin needs others."""

    usage: int = USAGE
    interrupted: int = INTERRUPTED
    unread: int = UNREAD
    unwritten: int = FAILURE


_STATUSES = Statuses()

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def run(
    page: Callable[[], str],
    body: Callable[[list[str]], int],
    arguments: Sequence[str] | None = None,
    *,
    needs_arguments: bool = False,
    statuses: Statuses = _STATUSES,
    crashed: Callable[[], int] | None = None,
) -> int:
    """The exit status of a command: that of ``body``, which gets the arguments and imports what it needs.

    --help (the manual page) and --version need no body. A UserError is printed in one line; Ctrl-C and a reader that
    has gone (``| head``) leave no traceback. ``crashed`` is called in the handler of any other exception and gives the
    status; without it the exception is raised.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _answer(page, given, usage=statuses.usage if needs_arguments else None)
        if status is None:
            status = _run_body(body, given, statuses)
    except BaseException as error:
        broken = _flush(statuses) or (statuses.unread if _is_unread() else None)
        if broken is not None and isinstance(error, (OSError, SystemExit)):  # rich exits where it cannot write
            return broken
        if isinstance(error, OSError) and error.errno in _FULL and _is_full():
            UserError(f"cannot write the output: {error.strerror}").show()
            _discard(sys.stdout)
            return statuses.unwritten
        if crashed is None:
            raise
        status = crashed()
    if arguments is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python only cleans up from here on
    return _flush(statuses) or status


def _run_body(body: Callable[[list[str]], int], given: list[str], statuses: Statuses) -> int:
    try:
        return body(given)
    except UserError as error:
        error.show()
        return statuses.usage
    except BaseException as error:
        interrupt = error.__cause__ or error  # C code that Ctrl-C stops, as in an import, may raise another exception
        if not isinstance(interrupt, KeyboardInterrupt):
            raise
        print(*interrupt.args or ["interrupted"], file=sys.stderr)
        return statuses.interrupted


def _answer(page: Callable[[], str], given: Sequence[str], *, usage: int | None) -> int | None:
    """Prints what needs no command, and its status; None where the command has to run.

    ``usage``: the status without any arguments, None for a command that needs none.
    """
    if "-h" in given or "--help" in given:
        print(page().rstrip())
    elif "--version" in given:
        print(f"deepep-sweep {read_version()}")
    elif usage is not None and not given:
        name_and_usage = page().split("\n\n")[:2]
        print("\n\n".join(name_and_usage), file=sys.stderr)
        return usage
    else:
        return None
    return OK


def _streams() -> list[TextIO]:
    """Stdout and stderr, as far as they are open."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _is_unread() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads any more."""
    poll = select.poll()
    for stream in _streams():
        with contextlib.suppress(OSError):  # a stream without a file, as in a notebook
            poll.register(stream.fileno(), 0)  # poll reports errors without being asked for them
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _is_full() -> bool:
    """Whether stdout takes no more, as on a full disk: an error of a file's writer says nothing of stdout."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError as error:
        return error.errno in _FULL
    return False


def _discard(stream: TextIO) -> None:
    """Sends what a stream still holds nowhere: Python would complain when it ends, and exit with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _flush(statuses: Statuses) -> int | None:
    """None once all output is written, else a status."""
    status = None
    for stream in _streams():
        try:
            stream.flush()
        except BrokenPipeError:
            status = statuses.unread
        except OSError as error:
            UserError(f"cannot write the output: {error.strerror}").show()
            status = statuses.unwritten
        else:
            continue
        _discard(stream)
    return status


def read_version() -> str:
    """The version of the program: from the checkout that runs, else from the installation; "unknown" without either."""
    import importlib.metadata
    import tomllib

    checkout = ROOT / "pyproject.toml"
    project = tomllib.loads(checkout.read_text()).get("project", {}) if checkout.is_file() else {}
    if project.get("name") == _NAME:
        return str(project["version"])
    try:
        return importlib.metadata.version(_NAME)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
