"""What a memory device is, and what is refused as one."""

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from bridge.checks import require_finite
from bridge.chips.memories.conductances import WeightMapping

if TYPE_CHECKING:
    from aihwkit.inference.noise.base import BaseNoiseModel
    from numpy.typing import NDArray

    from bridge.chips.memories.expectations import DeviceMoments

Compensation = Literal["global", "global_exact", "per_column"]
"""Digital factors that undo the mean drift, found by reading the tile out with unit vectors.

"global": one factor a tile, relative to a readout right after programming; "global_exact": relative
to the target weights; "per_column": one factor an output."""


@runtime_checkable
class Memory(Protocol):
    """What the weights are programmed into: a memory below, or a frozen dataclass of your own.

    Its fields hold numbers, texts, None, tuples of these or further dataclasses, so that a chip's
    file can keep them; its `__post_init__` refuses bad ones with a ValueError. `load_chip` and
    `from_json` are given the class of your own memory, for a file only names it.

    One that is a `GivesMoments` too has the moments of its weights computed, and not sampled. One
    that is a `bridge.jax_chips.Device` needs no `noise_model` for chips in JAX.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Its part of the profile's name, such as "pcm"."""

    @property
    def t_inference(self) -> float:
        """Seconds from the end of programming to inference; a field, which `Chip.at` replaces."""

    @property
    def compensation(self) -> Compensation | None:
        """Compensation of drift; None for none."""

    def noise_model(self) -> "BaseNoiseModel":
        """AIHWKit's noise model with these settings.

        It must draw from torch's global generator alone, which is seeded by chip, tile and time.
        """


class Ageing(Protocol):
    """The settings that memories with drift and read noise have in common."""

    @property
    def t_inference(self) -> float: ...
    @property
    def programming_noise(self) -> float: ...
    @property
    def drift(self) -> float: ...
    @property
    def read_noise(self) -> float: ...


@runtime_checkable
class GivesMoments(Protocol):
    """A memory that knows the moments of its weights: each that ships, and one of your own may."""

    def moments(self, targets: "NDArray[Any]") -> "DeviceMoments":
        """What can be expected of the weights of one tile.

        Args:
          targets: float64 `[rows, columns]` of NumPy, the largest magnitude 1, or all 0.

        Returns:
          The mean and the variance of each weight as it is read at `t_inference`, seconds after
          programming; the mean of its magnitude there; and that of its magnitude right after
          programming. Four arrays like the targets, in their unit, the variance in its square, as
          `DeviceMoments` or a plain tuple; compensation of drift is not in them.
        """


def require_memory(memory: object) -> None:
    """Raises ValueError, with what is missing, unless this is a `Memory`."""
    members = ("name", "t_inference", "compensation", "noise_model")
    missing = [name for name in members if not hasattr(memory, name)]
    if hasattr(memory, "program") and hasattr(memory, "read"):  # a device of chips in JAX
        missing = [name for name in missing if name != "noise_model"]
    if not is_dataclass(memory) or isinstance(memory, type):
        missing.append("an instance of a dataclass")
    elif "t_inference" not in [*missing, *(one.name for one in fields(memory))]:
        missing.append("t_inference as a field")
    if missing:
        raise ValueError(
            "a profile's memory must be a PCM or Hermes or ReRamWan2022 or ReRamCMO, or a frozen "
            f"dataclass of your own with {', '.join(members)} (for chips in JAX alone program and "
            f"read in place of noise_model); got {memory!r}, which lacks {', '.join(missing)}"
        )


def noise_model_of(memory: Memory) -> "BaseNoiseModel":
    """AIHWKit's noise model of a memory.

    Raises:
      ValueError: it has none, being a device of chips in JAX alone.
    """
    if not hasattr(memory, "noise_model"):
        raise ValueError(
            f"{type(memory).__name__} has no method noise_model, which chips of a PyTorch network "
            "take: give it noise_model(), see bridge.chips.Memory; or program the network in JAX "
            "with bridge.analog"
        )
    return memory.noise_model()


def check_settings(memory: Any, *numbers: str) -> None:
    """Raises ValueError where a memory that ships has a setting that cannot be.

    Args:
      memory: has `g_max` (microsiemens or None), `compensation` and perhaps a `mapping`.
      numbers: names of further fields that must be finite and not negative.
    """
    what = type(memory).__name__
    if memory.g_max is not None:
        require_finite(f"{what} g_max", memory.g_max, positive=True)
    for name in numbers:
        require_finite(f"{what} {name}", getattr(memory, name))
    mapping = getattr(memory, "mapping", None)
    if hasattr(memory, "mapping") and not isinstance(mapping, WeightMapping):
        raise ValueError(
            f"{what} mapping must be SinglePair, Pairs or MappedPairs, got {mapping!r}"
        )
    if mapping is not None and mapping.g_min >= (memory.g_max or memory.largest_conductance):
        raise ValueError(f"{what} g_min must be below g_max, got {mapping.g_min}")
    if memory.compensation not in (None, "global", "global_exact", "per_column"):
        raise ValueError(
            f"{what} compensation must be global, global_exact, per_column or None, got "
            f"{memory.compensation!r}"
        )
