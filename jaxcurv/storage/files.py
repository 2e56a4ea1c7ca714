"""Files that are either whole or absent."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes bytes atomically."""
    return write_whole(path, lambda temporary: temporary.write_bytes(content))


def write_whole(path: Path, save: Callable[[Path], object]) -> Path:
    """Lets `save` write a file under a temporary name, then moves it to `path`.

    No reader ever sees half of it; the folder is made where missing.

    Raises:
      OSError: it cannot be written; the error names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        save(temporary)
        # mkstemp makes files private; these are as readable as any other the user writes.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # or a crash of the machine might leave the name alone
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk's names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path
