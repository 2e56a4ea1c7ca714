"""What a run says of its network, in model.json and in the header of weights.safetensors.

A run's folder may come from elsewhere: a description is checked before anything is built from it.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args, get_type_hints

from experiments.settings.flags import Model
from jaxcurv import data
from jaxcurv.storage.checksums import read_json

Framework = Literal["torch", "jax"]
"""Where a network is from: "torch" goes onto chips, "jax" has no PyTorch counterpart."""

_COUNTS = ("num_classes", "in_channels")
_FACTORY = re.compile(r"\w+(\.\w+)*:\w+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_description(folder: Path) -> dict[str, Any]:
    """The description in a run's model.json; its checkpoint lies in `folder`.

    Raises:
      FileNotFoundError: no model was trained there.
      ValueError: the file is damaged or describes no network that can be built.
    """
    path = folder / "model.json"
    description = require_description(read_json(path), path)
    checkpoint = description.get("checkpoint")
    if not isinstance(checkpoint, str) or not is_inside(checkpoint):
        raise ValueError(
            f"{path} has its checkpoint at {checkpoint!r}, not within the run's folder: run train "
            "again"
        )
    return description


def is_inside(path: str) -> bool:
    """Whether a relative path stays within its folder, links aside."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts


def require_description(found: Any, path: Path) -> dict[str, Any]:
    """What was read from `path`, if a network can be built from it.

    Raises:
      ValueError: it says what is wrong.
    """
    problem = _problem(found)
    if problem is not None:
        raise ValueError(
            f"{path} describes no network: {problem}; run the stage that wrote it again"
        )
    return found


def _problem(found: Any) -> str | None:
    if not isinstance(found, dict):
        return f"it holds a {type(found).__name__}"
    if problem := _no_factory(found) if is_of_factory(found) else _no_resnet(found):
        return problem
    for name in _COUNTS if is_of_factory(found) else ("width", *_COUNTS):
        if type(found.get(name)) is not int or found[name] < 1:
            return f"{name} is {found.get(name)!r}, not a positive number"
    names = found.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "it has no list of class_names"
    if len(names) != found["num_classes"]:
        return f"it has {len(names)} class_names for {found['num_classes']} classes"
    try:
        read_normalisation(found)
    except (KeyError, TypeError, ValueError) as error:
        return f"its normalisation cannot be read ({error!r})"
    return None


def is_of_factory(description: dict[str, Any]) -> bool:
    """Whether the network is one of the user's own, made by a factory."""
    return "factory" in description


def framework_in(description: dict[str, Any]) -> Framework:
    """Where the network of a description is from."""
    framework: Framework = description.get("framework", "torch")
    return framework


def read_framework(folder: Path) -> Framework:
    """`framework_in` of a run's model.json; "torch" where there is none that can be read."""
    try:
        return framework_in(read_description(folder))
    except (OSError, ValueError):
        return "torch"


def _no_resnet(found: dict[str, Any]) -> str | None:
    kinds = get_type_hints(Model)
    for name in ("architecture", "stem"):
        known = get_args(kinds[name])
        if found.get(name) not in known:
            return f"{name} is {found.get(name)!r}, not {' or '.join(known)}"
    return None


def _no_factory(found: dict[str, Any]) -> str | None:
    name, sources = found["factory"], found.get("sources")
    if not isinstance(name, str) or not _FACTORY.fullmatch(name):
        return f"factory is {name!r}, not package.module:factory"
    if not isinstance(sources, dict) or not all(
        isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in sources.values()
    ):
        return "it has no checksums of the factory's sources"
    if framework_in(found) not in get_args(Framework):
        return f"framework is {found['framework']!r}, not {' or '.join(get_args(Framework))}"
    return None


def read_normalisation(description: dict[str, Any]) -> data.Normalisation:
    """The normalisation that a network was trained with."""
    statistics = description["normalisation"]  # JSON has lists
    return data.Normalisation(tuple(statistics["mean"]), tuple(statistics["std"]))


def describe_own(
    factory: str,
    sources: dict[str, str],
    dataset: data.ImageDataset,
    *,
    in_channels: int,
    normalisation: data.Normalisation,
) -> dict[str, Any]:
    """What makes a network of a factory anew and says what it is for, as JSON holds it.

    Args:
      factory: its name, package.module:factory.
      sources: SHA-256 of its source files, by module.
      dataset: the images; their classes are the network's.
      in_channels: channels of its input.
      normalisation: that of its input.
    """
    return {
        "factory": factory,
        "sources": sources,
        "num_classes": len(dataset.class_names),
        "in_channels": in_channels,
        "class_names": list(dataset.class_names),
        "normalisation": asdict(normalisation),
    }


def describe(
    model: Model,
    dataset: data.ImageDataset,
    *,
    in_channels: int,
    normalisation: data.Normalisation,
) -> dict[str, Any]:
    """What builds a network anew and says what it is for, as JSON holds it."""
    return {
        "architecture": model.architecture,
        "stem": model.stem,
        "width": model.width,
        "num_classes": len(dataset.class_names),
        "in_channels": in_channels,
        "class_names": list(dataset.class_names),
        "normalisation": asdict(normalisation),
    }
