"""What stages and studies ask of a network that goes onto chips, and of its chips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from bridge.chips.profiles import Profile
from jaxcurv.data import Source


class Chip(Protocol):
    """One chip, its weights programmed."""

    def at(self, time: float) -> Chip:
        """The same chip, `time` seconds after programming."""

    def predict(self, source: Source, description: str, **options: Any) -> pd.DataFrame:
        """The table of `bridge.predict`; options: batch_size, keep and reads, as there."""

    def recalibrated(self, images: np.ndarray, batch_size: int) -> Chip:
        """The same chip with BatchNorm statistics of its own; see `bridge.recalibrate`.

        At another time it keeps them.
        """

    def converters(self, unseen: np.ndarray) -> pd.DataFrame:
        """A row a converter: tile, range, and clipped_share of its outputs on some images."""

    def is_finite(self) -> bool:
        """Whether all weights are finite numbers."""


class Programmable(Protocol):
    """A digital network that chips are programmed with."""

    @property
    def device(self) -> str:
        """What it runs on."""

    @property
    def layers(self) -> Sequence[str]:
        """The layers that are on tiles."""

    @property
    def batch_norms(self) -> int:
        """How many BatchNorms it has: without one, its chips cannot be recalibrated."""

    def predict(self, source: Source, description: str, **options: Any) -> pd.DataFrame:
        """The digital network's table; see `Chip.predict`."""

    def program(self, profile: Profile, seed: int, *, digital_layers: Sequence[str] = ()) -> Chip:
        """The chip of a seed; `digital_layers`, of `layers`, are on no tile."""

    def at_once(self, profile: Profile, batch_size: int) -> int:
        """How many chips of a profile are best predicted together."""

    def predict_chips(
        self, chips: Sequence[Any], source: Source, description: str, **options: Any
    ) -> list[pd.DataFrame]:
        """The table of each of some chips of one profile, which `program` gave; options as for
        `Chip.predict`."""

    def weight_moments(self, profile: Profile) -> dict[str, np.ndarray]:
        """Moments of a profile's weights as JAX names them: `mean/WEIGHT`, `variance/WEIGHT`."""

    def output_noise(self, profile: Profile, source: Source, **options: Any) -> pd.DataFrame:
        """The table of `bridge.output_noise`; options: batch_size and description."""

    def coverage(self, images: np.ndarray) -> pd.DataFrame:
        """The table of `bridge.coverage`."""

    def layer_report(self, profile: Profile, seed: int, images: np.ndarray) -> pd.DataFrame:
        """The table of `bridge.chips.layer_report` for the chip of a seed."""

    def layer_failures(self, profile: Profile, source: Source, **options: Any) -> pd.DataFrame:
        """The table of `bridge.chips.layer_failures`; options: seed, chips and batch_size."""
