"""How memory devices program, drift and are read, in JAX: the models that AIHWKit has in PyTorch.

Their settings are those of `bridge.chips.memories`, which has the measured constants too; a module
here has the formulas. A memory of your own is its own device: it has the methods of `Device`.
"""

from typing import Any, Protocol, cast, runtime_checkable

from jax import Array

from bridge.chips.memories.pcm import PCM, Hermes
from bridge.chips.memories.protocol import GivesMoments, Memory
from bridge.chips.memories.reram import ReRamCMO, ReRamWan2022
from bridge.jax_chips.devices import drifting, reram_cmo, reram_wan2022
from bridge.jax_chips.grids import Tile


@runtime_checkable
class Device(Protocol):
    """A memory of your own: a frozen dataclass with a memory's fields and these two methods.

    Both are pure functions that `jax.jit` and `jax.vmap` take. Weights are those of one tile, the
    largest of the targets 1.

    `weight_moments` takes a third, `moments(targets)` of `bridge.chips.GivesMoments`.
    """

    def program(self, key: Array, targets: Tile) -> tuple[Tile, Any]:
        """The weights right after programming, and whatever `read` needs of the devices."""

    def read(self, key: Array, programmed: Tile, state: Any) -> Tile:
        """The weights at the memory's `t_inference`, seconds after programming."""


_SHIPPED = {PCM: drifting, Hermes: drifting, ReRamWan2022: reram_wan2022, ReRamCMO: reram_cmo}


def require_device(memory: Any) -> None:
    """Raises ValueError unless there is a model of this memory in JAX."""
    if type(memory) not in _SHIPPED and not isinstance(memory, Device):
        raise ValueError(
            f"{type(memory).__name__} has no model in JAX: give it the methods program(key, "
            "targets) and read(key, programmed, state) of bridge.jax_chips.Device; or program the "
            "network with bridge.program, which takes its noise_model()"
        )


def require_moments(memory: Memory) -> GivesMoments:
    """The memory itself.

    Raises:
      ValueError: it does not give the moments of its weights.
    """
    if not isinstance(memory, GivesMoments):
        raise ValueError(
            f"{type(memory).__name__} has no method moments: give it moments(targets), see "
            "bridge.chips.GivesMoments; or sample the moments with bridge.weight_moments, which "
            "programs a torch network by its noise_model()"
        )
    return memory


def program(memory: Any, key: Array, targets: Tile) -> tuple[Tile, Any]:
    """A memory's `Device.program`."""
    if type(memory) in _SHIPPED:
        return _SHIPPED[type(memory)].program(memory, key, targets)
    return cast(Device, memory).program(key, targets)


def read(memory: Any, key: Array, programmed: Tile, state: Any) -> Tile:
    """A memory's `Device.read`."""
    if type(memory) in _SHIPPED:
        return _SHIPPED[type(memory)].read(memory, key, programmed, state)
    return cast(Device, memory).read(key, programmed, state)
