"""A chip's network, run so that a sample's logits depend on nothing but itself."""

import operator
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Literal

import torch
from torch import nn

from bridge.chips.execution.changes import Pair
from bridge.chips.execution.fast_tiles import (
    draws_noise,
    fast_network,
    unsupported_settings,
    without_converters,
)
from bridge.chips.memory_layout import Layout
from bridge.chips.streams import SampleNoise, SharedRows, stream
from bridge.chips.tiles import named_tiles
from bridge.chips.weight_noise import draws_per_operation
from jaxcurv.settings import require_whole

_COMPARED = 4  # samples that show whether a batch's noise is theirs
_ROUNDING = 1e-4  # of the largest logit
Engine = Literal["fast", "aihwkit"]
"""What computes the tiles: ordinary layers and convolutions (`execution`), or AIHWKit's tiles."""


class Executable(nn.Module):
    """A chip's network, run so that a sample's logits depend on nothing but itself.

    Args:
      network: on images `[batch, channel, height, width]`.
      noise: the samples' own noise, of which the network takes it.
      one_by_one: run one sample at a time under a random state of its own, for tiles that draw from
        torch's global state or couple the samples of a batch. Turned on where a layer that draws
        noise works on something else than the samples' rows, one sample after the other, such as
        learned queries, sequences with their length first, or the samples that a router chooses.

    Attributes:
      made_of: the network on tiles that it was made of, to be compared with it; None where it runs
        that network itself, and in a copy.
    """

    made_of: Pair | None

    def __init__(self, network: nn.Module, noise: SampleNoise, one_by_one: bool):
        super().__init__()
        self.network, self.noise, self.one_by_one = network, noise, one_by_one
        self._layout, self.made_of = Layout(network), None
        self._compared = one_by_one or not draws_noise(network)

    def forward(self, images: torch.Tensor, indices: Sequence[int], read: int = 0) -> torch.Tensor:
        """Logits `[batch, class]` of images whose stable indices, each >= 0, are given.

        Each `read` >= 0 draws other noise of operations.
        """
        if len(indices) != len(images):
            raise ValueError(f"{len(images)} images need as many indices, not {len(indices)}")
        indices = [operator.index(index) for index in indices]
        if min(indices) < 0:
            raise ValueError(f"indices must not be negative, got {min(indices)}")
        self.noise.read = require_whole("read", read, 0)
        return self._layout(partial(self._run, indices), images)

    def _run(self, indices: Sequence[int], images: torch.Tensor) -> torch.Tensor:
        if not self.one_by_one:
            try:
                found = self._together(indices, images)
                if self._compared or len(images) == 1:
                    return found
                self._compared = True
                if self._has_samples_noise(indices[:_COMPARED], images[:_COMPARED]):
                    return found
            except SharedRows:
                pass
            self.one_by_one = True
        return self._apart(indices, images)

    def _together(self, indices: Sequence[int], images: torch.Tensor) -> torch.Tensor:
        self.noise.begin(list(indices))
        found: torch.Tensor = self.network(images.clone())  # which it may change in place
        return found

    def _apart(self, indices: Sequence[int], images: torch.Tensor) -> torch.Tensor:
        logits = []
        for image, index in zip(images.split(1), indices, strict=True):
            with stream(self.noise.seed, *self.noise.key(index), device=images.device):
                found = self._together([index], image)
            if not isinstance(found, torch.Tensor):
                return found  # no logits, which is told later
            logits.append(found[None] if found.ndim == 1 else found)
        return torch.cat(logits)

    def _has_samples_noise(self, indices: Sequence[int], images: torch.Tensor) -> bool:
        """Whether each sample has the noise in a batch that it has alone.

        Seen by the layers' rows and by the logits, without converters, which may round otherwise.
        """
        try:
            with without_converters(self.network):
                together = self._together(indices, images)
                drawn = [(name, count // len(images)) for name, count in self.noise.drawn]
                alone = []
                for image, index in zip(images.split(1), indices, strict=True):
                    alone.append(self._together([index], image))
                    if self.noise.drawn != drawn:
                        return False
            off = float((together - torch.cat(alone)).abs().max())
            return not off > _ROUNDING * float(together.abs().max())
        except SharedRows:
            raise
        except Exception:
            return True  # it runs on batches of one size, or gives no logits, which is told later


def require_engine(analog: nn.Module, engine: Engine) -> list[str]:
    """The settings that only AIHWKit's tiles honour, refused where they are not to run."""
    if engine not in ("fast", "aihwkit"):
        raise ValueError(f"the engine is fast or aihwkit, got {engine!r}")
    unsupported = unsupported_settings(analog)
    if unsupported and engine == "fast":
        raise ValueError(
            f"fast execution cannot honour {', '.join(unsupported)}; use engine='aihwkit'"
        )
    return unsupported


def executable_of(analog: nn.Module, engine: Engine, seed: int) -> Executable:
    """The tiles run by an engine, under the noise of a seed.

    Raises:
      ValueError: the engine cannot honour a setting of the tiles; all are named.
    """
    noise = SampleNoise(seed)
    unsupported = require_engine(analog, engine)
    if engine == "fast":
        network = fast_network(deepcopy(analog), noise)
        made = Executable(network, noise, one_by_one=False).eval()
        made.made_of = Pair(analog, network)
        return made
    tiles = named_tiles(analog).values()
    draws = any(draws_per_operation(tile.rpu_config.forward) for tile in tiles)
    return Executable(analog, noise, one_by_one=draws or bool(unsupported)).eval()
