"""A user's own network: what `package.module:factory` makes, as a function in JAX."""

from __future__ import annotations

import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def call_factory(name: str) -> Any:
    """What `package.module:factory` returns.

    Raises:
      ImportError: the module cannot be imported.
      ValueError: it has no such function, or that fails.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"--model must be package.module:factory; got {name!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may end itself
        raise ImportError(
            f"cannot import {module_name} from {folder} or the installed packages: "
            f"{type(error).__name__}: {error}"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ValueError(f"{module_name} ({module.__file__}) has no function {attribute}")
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error


def sources_of(name: str) -> dict[str, str]:
    """SHA-256 of the Python files that a factory's network comes from, by module.

    The modules are the factory's and those that have been imported from the same folder, packages
    in it included. Of an installed package it is the factory's alone.

    Args:
      name: package.module:factory, which `call_factory` has called.
    """
    module = sys.modules[name.partition(":")[0]]
    files = {module.__name__: _file_of(module)}
    top = sys.modules[module.__name__.partition(".")[0]]
    place = _file_of(top)
    if place is not None:
        root = place.parent.parent if place.name == "__init__.py" else place.parent
        installed = root.is_relative_to(sysconfig.get_path("stdlib"))
        if not installed and not _INSTALLED & set(root.parts):
            files |= {
                other: file
                for other, one in list(sys.modules.items())
                if other.partition(".")[0] not in _OURS
                and (file := _file_of(one)) is not None
                and file.is_relative_to(root)
                and not _INSTALLED & set(file.relative_to(root).parts)
            }
    return {
        module_name: hashlib.sha256(file.read_bytes()).hexdigest()
        for module_name, file in sorted(files.items())
        if file is not None and file.is_file()
    }


_OURS = {"bridge", "experiments", "jaxcurv", "__main__", "__mp_main__"}
_INSTALLED = {"site-packages", "dist-packages"}


def _file_of(module: Any) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def as_function(
    made: Any, name: str, images: Callable[[], np.ndarray] | None = None
) -> tuple[Callable[..., Any], Any]:
    """A model and its parameters, as `score_dataset` takes them.

    Args:
      made: what the factory returned.
      name: the factory's, for messages.
      images: reads examples, float32 `[batch, height, width, channel]`; None where it is known to
        be no torch module, which needs them.

    Raises:
      ValueError: it is no model, or a torch module that JAX cannot take.
    """
    if images is not None and is_torch(made):
        import bridge

        return bridge.to_jax(made, images())
    logits_fn, params = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not callable(logits_fn):
        raise ValueError(
            f"{name} must return a torch module, an NNX module, a function images -> logits, or a "
            f"pair (function of params and images, params); got {type(made).__name__}"
        )
    return logits_fn, params


def is_torch(made: Any) -> bool:
    """Whether it is a torch module; torch is imported where it was, by the factory."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(made, torch.nn.Module)
