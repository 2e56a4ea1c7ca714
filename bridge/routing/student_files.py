"""Students to and from safetensors files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bridge.jax_chips.chips import paths
from bridge.routing.student import Student
from bridge.routing.student_network import Architecture, abstract_network
from jaxcurv.storage.checksums import CHECKSUM, HEADER, check, hash_content, take_checksum
from jaxcurv.storage.files import write_whole


def save_student(path: str | os.PathLike[str], student: Student) -> None:
    """Writes a student, atomically.

    Args:
      path: the file; its folder must exist.
      student: made by `fit_student`.

    Raises:
      FileNotFoundError: no such folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} for {target.name}")
    described = {name: getattr(student, name) for name in _DESCRIBED}
    header = json.dumps({"student": asdict(student.architecture), **described})
    arrays = {name: np.ascontiguousarray(one) for name, one in student.weights.items()}
    content = save(arrays, {HEADER: header, CHECKSUM: hash_content(arrays, header)})
    write_whole(target, lambda temporary: temporary.write_bytes(content))


def load_student(path: str | os.PathLike[str]) -> Student:
    """Reads what `save_student` wrote; runs no code from the file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged, or holds no student.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no student at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    header = metadata.get(HEADER)
    if header is None:
        raise ValueError(f"{path} holds no student of save_student")
    found = take_checksum(metadata)
    check(path, found, lambda: hash_content(arrays, header))
    try:
        return _student(json.loads(header), arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no student of save_student: {error!r}") from error


_DESCRIBED = ("inputs", "mean", "std", "held_out_loss", "constant_loss")


def _student(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Student:
    size = header["student"]
    architecture = Architecture(tuple(size["shape"]), int(size["pooling"]), tuple(size["widths"]))
    _, shapes = abstract_network(architecture)
    wanted = {
        name: leaf.shape for name, leaf in zip(paths(shapes), jax.tree.leaves(shapes), strict=True)
    }
    there = {name: one.shape for name, one in arrays.items()}
    if wanted != there:
        raise ValueError(f"weights of shapes {there}, not {wanted}")
    described = {name: header[name] for name in _DESCRIBED}
    described |= {name: tuple(header[name]) for name in ("mean", "std")}
    return Student(architecture, weights=arrays, **described)
