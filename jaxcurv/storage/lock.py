"""One writer a folder: a lock that says who holds it, and that no dead process holds."""

import contextlib
import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxcurv.storage.files import write_whole

HEARTBEAT_SECONDS = 15.0
"""Between two signs of life of the process that holds a lock."""

DEAD_AFTER_SECONDS = 120.0
"""Without a sign of life a process counts as dead that cannot be looked for: it is on another host,
or its number may be another process's by now."""

_UNKNOWN = "unknown"
"""Stands for the time at which a living process began, where the system does not tell it."""

_JOB = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")


class FolderInUse(OSError):
    """Another process works in the folder, or on the file."""


@contextlib.contextmanager
def hold(folder: Path, *, name: str = ".lock", of: Path | None = None) -> Iterator[None]:
    """Holds the folder's lock; the file `NAME` in it says by whom, and its age for how long alive.

    Where the lock is of one file in the folder or of part of its making, `of` is that file.

    The lock of a process that has died is taken over: at once where this host knows it to be dead,
    else after `DEAD_AFTER_SECONDS` without a heartbeat: it ran on another host, or on one that
    hides when processes began. Ages are measured by the clock of the file system, hosts may
    disagree. A process that was taken for dead (its machine slept) and finds its lock in other
    hands sends itself SIGTERM.

    Raises:
      FolderInUse: another process holds it; the message says which.
      OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    mine = _me()
    _take(path, mine, folder if of is None else of)
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, mine["token"], stop), daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        with contextlib.suppress(OSError):  # never in the place of what ended the work
            if _token(path) == mine["token"]:
                path.unlink()


def _take(path: Path, mine: Mapping[str, Any], of: Path) -> None:
    # Written under another name first: a lock is never without its holder's name.
    ready = path.with_name(f"{path.name}.{mine['token']}")
    try:
        write_whole(ready, lambda file: file.write_text(json.dumps(mine)))
        while not _linked(ready, path):
            holder = _dead_holder(path, of)
            if holder is not None and _inherited(path, holder, ready, mine, of):
                return
    finally:
        ready.unlink(missing_ok=True)


def _inherited(
    path: Path, holder: Mapping[str, Any], ready: Path, mine: Mapping[str, Any], of: Path
) -> bool:
    """Puts `ready` in the place of a dead holder's lock, unless another did.

    Who inherits from it is decided by a lock of that holder's own name.
    """
    inheritance = path.with_name(f"{path.name}.after.{holder.get('token')}")
    _take(inheritance, mine, of)
    try:
        if _read(path) != holder:
            return False
        os.replace(ready, path)
        return True
    finally:
        inheritance.unlink()


def _linked(source: Path, target: Path) -> bool:
    """Gives a file a second name unless that is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with open(descriptor, "wb") as file:
            file.write(source.read_bytes())
    return True


def _dead_holder(path: Path, of: Path) -> dict[str, Any] | None:
    """Who held the lock and is dead; None if it was released meanwhile.

    Raises:
      FolderInUse: the holder lives.
    """
    holder, age = _read(path), _age(path)
    if age is None:
        return None
    if not _is_dead(holder, age):
        raise FolderInUse(
            f"{of} is in use by {_name(holder)}, last sign of life {age:.0f} s ago: wait for it, "
            f"or choose another place; if you know it to be dead, delete {path}"
        )
    return holder


def _is_dead(holder: Mapping[str, Any], age: float) -> bool:
    here = _me()
    if all(holder.get(key) == here[key] for key in ("host", "processes")):
        found = _started(holder["process"])
        if found is None:
            return True
        if _UNKNOWN not in (found, holder["started"]):
            return found != holder["started"]
    return age > DEAD_AFTER_SECONDS


def _beat(path: Path, token: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):  # a file server that is away; the next may reach it
            if _token(path) != token:
                holder = _read(path)
                what = f"was taken over by {_name(holder)}" if holder else "was removed"
                print(f"error: {path} {what} while this process lived; stopping", file=sys.stderr)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            os.utime(path)


def _me() -> dict[str, Any]:
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "processes": _processes(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "job": next((os.environ[name] for name in _JOB if name in os.environ), None),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.orig_argv),
    }


def _processes() -> str | None:
    """Names the processes that a number can mean: those of one start of one kernel, and, of
    containers on it, of one. None where this is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _started(process: int) -> str | None:
    """When a process of this host began, by its own clock; None if there is none.

    Tells it from a later one of the same number. `_UNKNOWN` where /proc does not say so: there is
    none, or it hides other users' processes. What has ended and was not yet waited for is none.
    """
    try:
        # Its state and the rest come after the command's name, which may hold brackets itself.
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return _UNKNOWN


def _read(path: Path) -> dict[str, Any]:
    """Who holds a lock; empty where the file is gone or just being written."""
    try:
        holder = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _token(path: Path) -> str | None:
    return _read(path).get("token")


def _age(path: Path) -> float | None:
    """Seconds since the last heartbeat; None if the lock is gone."""
    now = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    now.touch()
    try:
        return now.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return None
    finally:
        now.unlink()


def _name(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "an unknown process"
    job = f", job {holder['job']}" if holder.get("job") else ""
    return (
        f"process {holder.get('process')} on {holder.get('host')}{job}, which runs "
        f"`{holder.get('command')}` since {holder.get('since')}"
    )
