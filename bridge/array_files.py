"""NumPy arrays with a JSON header in a safetensors file, which carries its checksum."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxcurv.storage.checksums import CHECKSUM, HEADER, check, hash_content, take_checksum
from jaxcurv.storage.files import write_whole


def require_folder(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is to be written.

    Raises:
      FileNotFoundError: its folder is not there.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} for {target.name}")
    return target


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], header: str) -> None:
    """Writes arrays and a header, atomically."""
    content = save(dict(arrays), {HEADER: header, CHECKSUM: hash_content(arrays, header)})
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def read_arrays(
    path: str | os.PathLike[str], what: str, maker: str
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays and the header that `write_arrays` wrote; runs no code from the file.

    Args:
      path: the file.
      what: what it holds, for messages.
      maker: the function that writes it, for messages.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged, or no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    header = metadata.get(HEADER)
    if header is None:
        raise ValueError(f"{path} holds no {what} of {maker}")
    check(path, take_checksum(metadata), lambda: hash_content(arrays, header))
    return arrays, header
