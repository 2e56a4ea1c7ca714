"""Programs that JAX has compiled, kept between commands in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from pathlib import Path

from experiments.system.devices import cpu_information, processor

FLAG = "--no-compilation-cache"
"""Turns it off, in any command."""

_MOST_BYTES = 1 << 30
"""The oldest programs are removed from a folder that is larger."""

_MESSAGES = ("Error reading persistent compilation cache", "Error writing persistent compilation")
"""JAX's warnings where an entry is unfinished or the disk is full: the program is compiled."""


def keep_compiled_programs(wanted: bool = True) -> None:
    """Lets JAX keep what it compiles, in this process and in those that it starts.

    To be called before JAX is imported. The user's own JAX_COMPILATION_CACHE_DIR or
    JAX_ENABLE_COMPILATION_CACHE stays as it is. A folder that cannot be written means no cache, and
    so does one that others could have written: what is read from it is run.
    """
    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    if {"JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"} & os.environ.keys():
        return
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return
        remove_oldest(folder, _MOST_BYTES)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    given = os.environ.get("PYTHONWARNINGS")
    ignored = [f"ignore:{message}" for message in _MESSAGES]
    os.environ["PYTHONWARNINGS"] = ",".join([*([given] if given else []), *ignored])
    for message in _MESSAGES:
        warnings.filterwarnings("ignore", message)


def cache_folder() -> Path:
    """Where the programs are kept; of one kind of processor, for another may not run them."""
    home = os.environ.get("XDG_CACHE_HOME")
    default = Path("Library/Caches") if sys.platform == "darwin" else Path(".cache")
    base = Path(home) if home else Path("~").expanduser() / default
    # Virtual machines hide instruction sets under the same name.
    features = cpu_information("flags", "Features")
    kind = hashlib.sha256(f"{processor()} {features}".encode()).hexdigest()
    return base / "jaxcurv" / "xla" / kind[:16]


def remove_oldest(folder: Path, most_bytes: int) -> None:
    """Removes the oldest files of a folder that holds more than this, down to the half of it."""
    files = [(path.stat(), path) for path in folder.iterdir() if path.is_file()]
    size = sum(status.st_size for status, _ in files)
    if size <= most_bytes:
        return
    for status, path in sorted(files, key=lambda file: file[0].st_mtime):
        if size <= most_bytes // 2:
            break
        path.unlink(missing_ok=True)  # another command may have been faster
        size -= status.st_size
