"""Installed packages and environment variables that a result depends on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from jaxcurv.extras import not_installed


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python, of this package and of what a stage needs.

    Raises:
      ModuleNotFoundError: names the missing ones and what installs them.
    """
    versions, missing = {"python": platform.python_version()}, []
    for name in ("jaxcurv", "numpy", "pandas", "pyarrow", "tensorflow-datasets", *names):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise not_installed("this command", "experiments", missing)
    return versions


def environment() -> dict[str, str]:
    """The variables that change what JAX, XLA, CUDA or torch compute, or on how many devices."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(
            ("JAX_", "XLA_", "CUDA_", "CUBLAS_", "TORCH_", "OMP_", "MKL_", "NVIDIA_")
        )
        and "_CACHE" not in name  # which changes when programs are compiled, not what they give
    }
