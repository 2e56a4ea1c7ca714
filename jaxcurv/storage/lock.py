"""One writer a folder: a lease of `filelock`, with a note of who has it."""

import contextlib
import json
import os
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from jaxcurv.storage.files import write_whole

HEARTBEAT_SECONDS = 15.0
"""Between two signs of life of the process that has a lock."""

DEAD_AFTER_SECONDS = 120.0
"""Without a sign of life a process counts as dead that cannot be looked for."""

_JOB = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")


class FolderInUse(OSError):
    """Another process works in the folder, or on the file."""


@contextlib.contextmanager
def lock(folder: Path, *, name: str = ".lock", of: Path | None = None) -> Iterator[None]:
    """Locks the folder by the file `NAME` in it; `NAME.holder` says who did.

    Where the lock is of one file in the folder or of part of its making, `of` is that file.

    The lock of a process that has died is taken over: at once where this host knows it to be dead,
    after `DEAD_AFTER_SECONDS` without a heartbeat, by the clock of the file system, where it cannot
    be looked for: it ran on another host, or on one that hides its processes. A process that was
    taken for dead (its machine slept) and finds its lock in other hands, or cannot reach
    it for so long that it may be, sends itself SIGTERM.

    Raises:
      FolderInUse: another process has it; the message says which.
      OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    lease = _acquire(path, folder if of is None else of)
    try:
        mine = json.dumps(_me() | {"token": lease.token})
        write_whole(_note(path), lambda file: file.write_text(mine))
        yield
    finally:
        with contextlib.suppress(OSError):  # never in the place of what ended the work
            if lease.compromise is None:
                _note(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            lease.release()


def _acquire(path: Path, of: Path) -> SoftFileLease:
    lease = SoftFileLease(
        path,
        lease_duration=DEAD_AFTER_SECONDS,
        heartbeat_interval=HEARTBEAT_SECONDS,
        on_compromise=lambda lost: _stop(Path(lost.lock_file), lost.reason),
    )
    while True:
        with contextlib.suppress(Timeout, LeaseSettingsMismatch):
            lease.acquire(blocking=False)
            return lease
        if (dead := _dead(path, of)) is not None:
            _remove(path, dead, of)


def _dead(path: Path, of: Path) -> os.stat_result | None:
    """The lock of a dead holder; None where it is gone.

    Raises:
      FolderInUse: the holder lives.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as probe:
        os.utime(probe.fileno())  # by the file system's clock, as heartbeats are
        age = (os.fstat(probe.fileno()).st_mtime_ns - found.st_mtime_ns) / 1e9
    runs = _runs_here(_read(path))
    if runs is False or (runs is None and age > DEAD_AFTER_SECONDS):
        return found
    raise FolderInUse(
        f"{of} is in use by {_name(path)}, last sign of life {age:.0f} s ago: wait for it, or "
        f"choose another place; if you know it to be dead, delete {path}"
    )


def _remove(path: Path, dead: os.stat_result, of: Path) -> None:
    """Removes a dead holder's lock, one process at a time: under a lock of that holder's own.

    `filelock` takes over what it knows to be dead by exchanging two files' names, which NFS and
    others refuse, and what is on another host after watching it for as long as a lease lasts.
    """
    inheritance = _acquire(path.with_name(f"{path.name}.after.{dead.st_mtime_ns}"), of)
    try:
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if (found.st_mtime_ns, found.st_ino) == (dead.st_mtime_ns, dead.st_ino):
                path.unlink()
    finally:
        inheritance.release()


def _runs_here(holder: Mapping[str, Any]) -> bool | None:
    """Whether the holder's process exists; None where it cannot be looked for."""
    if None in (holder.get("processes"), _processes()) or holder["processes"] != _processes():
        return None
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _stop(path: Path, reason: str) -> None:
    what = {
        "owner-changed": f"was taken over by {_name(path)}",
        "marker-missing": "was removed",
    }.get(reason, f"could not be reached for {DEAD_AFTER_SECONDS - HEARTBEAT_SECONDS:.0f} s")
    print(f"error: {path} {what} while this process lived; stopping", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "processes": _processes(),
        "process": os.getpid(),
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


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


def _read(path: Path) -> dict[str, Any]:
    """What the holder says of itself; empty where it has not yet, or is another's note."""
    try:
        holder = json.loads(_note(path).read_text())
    except (OSError, ValueError):
        return {}
    owner = SoftFileLease(path).owner
    same = isinstance(holder, dict) and owner is not None and holder.get("token") == owner.token
    return holder if same else {}


def _name(path: Path) -> str:
    if not (holder := _read(path)):
        owner = SoftFileLease(path).owner
        return f"process {owner.pid} on {owner.hostname}" if owner else "an unknown process"
    job = f", job {holder['job']}" if holder.get("job") else ""
    return (
        f"process {holder.get('process')} on {holder.get('host')}{job}, which runs "
        f"`{holder.get('command')}` since {holder.get('since')}"
    )
