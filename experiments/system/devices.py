"""Where JAX and torch run: devices that are there, asked for, or idle."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path

_FORCED_DEVICES = "xla_force_host_platform_device_count"

_MOST_DEVICES = 16
"""Each holds a batch of its own in memory."""


def warn_of_idle_accelerator() -> None:
    """Says so when a GPU or TPU is there and JAX runs on the CPU."""
    import jax

    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        return
    for device, kind, extra in (
        ("/dev/nvidia0", "an NVIDIA GPU", "cuda13"),
        ("/dev/accel0", "a TPU", "tpu"),
    ):
        if Path(device).exists():
            print(
                f"warning: {kind} is present, but JAX runs on the CPU; for the accelerator: "
                f'pip install ".[{extra}]" in the checkout',
                file=sys.stderr,
            )


def require_device(name: str, flag: str = "--simulate.device") -> None:
    """Refuses a torch device, which `flag` named, that is not there.

    Raises:
      ValueError: torch has no such device.
    """
    if name == "cpu":
        return
    import torch

    if (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices, not {name}: "
            f"use {flag} cpu, or install torch for CUDA"
        )


def device() -> str:
    """What JAX computes on."""
    import jax

    return jax.devices()[0].device_kind if jax.default_backend() != "cpu" else processor()


def use_every_core(shared_batch: int | None = None) -> None:
    """Gives JAX one CPU device for each core that this process may use, at most 16.

    Within one program XLA leaves cores idle. To be called before JAX has its devices, after which
    it has no effect. A number that the user set in the environment stays.

    Args:
      shared_batch: size of a batch that the devices share; there are then as many as divide it.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or _FORCED_DEVICES in os.environ.get("XLA_FLAGS", ""):
        return
    import jax

    most = min(cores(), _MOST_DEVICES)
    count = most
    if shared_batch is not None:
        count = next(n for n in range(most, 0, -1) if shared_batch % n == 0)
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def processor() -> str:
    """The CPU's name, which neither JAX nor torch knows."""
    return cpu_information("model name") or platform.processor() or platform.machine()


def cpu_information(*names: str) -> str:
    """The first entry of one of these names that Linux has of the CPU, else an empty text."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    entries = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in entries if name.strip() in names), "")


def cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
