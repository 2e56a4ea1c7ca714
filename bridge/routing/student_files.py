"""Students to and from safetensors files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from bridge.array_files import read_arrays, require_folder, write_arrays
from bridge.jax_chips.chips import paths
from bridge.routing.student import Student
from bridge.routing.student_network import Architecture, abstract_network


def save_student(path: str | os.PathLike[str], student: Student) -> None:
    """Writes a student, atomically.

    Args:
      path: the file; its folder must exist.
      student: made by `fit_student`.

    Raises:
      FileNotFoundError: no such folder.
    """
    target = require_folder(path)
    described = {name: getattr(student, name) for name in _DESCRIBED}
    header = json.dumps({"student": asdict(student.architecture), **described})
    arrays = {name: np.ascontiguousarray(one) for name, one in student.weights.items()}
    write_arrays(target, arrays, header)


def load_student(path: str | os.PathLike[str]) -> Student:
    """Reads what `save_student` wrote; runs no code from the file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged, or holds no student.
    """
    arrays, header = read_arrays(path, "student", "save_student")
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
