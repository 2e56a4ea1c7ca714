"""Arrays over the local devices: each holds a part of the batch."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def over_devices(mesh: Mesh | None = None) -> NamedSharding | None:
    """The sharding of a batch over this process's devices; None for a single device."""
    if mesh is None:
        devices = jax.local_devices()
        if len(devices) == 1:
            return None
        mesh = Mesh(np.array(devices), ("batch",))
    return NamedSharding(mesh.local_mesh, PartitionSpec(mesh.axis_names))


def device_count(sharding: NamedSharding | None) -> int:
    """Number of devices that share a batch; 1 where `sharding` is None."""
    return 1 if sharding is None else sharding.num_devices


def place(weights: Any, sharding: NamedSharding | None) -> Any:
    """Weights on every device."""
    if sharding is None:
        return jax.device_put(weights)
    return jax.device_put(weights, NamedSharding(sharding.mesh, PartitionSpec()))
