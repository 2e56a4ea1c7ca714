"""AIHWKit's chips of a torch module."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import nn

import bridge
from bridge.chips.tiles import named_layers, named_tiles
from jaxcurv.data import Source


@dataclass(frozen=True, eq=False)
class TorchChip:
    """See `experiments.chips.protocol.Chip`."""

    chip: bridge.chips.Chip
    device: str

    def at(self, time: float) -> TorchChip:
        return TorchChip(self.chip.at(time), self.device)

    def predict(self, source: Source, description: str, **options: Any) -> pd.DataFrame:
        return bridge.predict(
            self.chip, source, device=self.device, description=description, **options
        )

    def converters(self, unseen: np.ndarray) -> pd.DataFrame:
        bounds = self.chip.out_bounds
        share = bridge.chips.clipped_share(self.chip, unseen) if bounds else {}
        table = pd.DataFrame({"tile": bounds.keys(), "range": bounds.values()})
        return table.assign(clipped_share=table["tile"].map(share))

    def is_finite(self) -> bool:
        tiles = named_tiles(self.chip.analog).values()
        return all(bool(tile.tile.get_weights().isfinite().all()) for tile in tiles)


@dataclass(frozen=True, eq=False)
class TorchNetwork:
    """See `experiments.chips.protocol.Programmable`."""

    module: nn.Module
    engine: Literal["fast", "aihwkit"]
    device: str
    calibration: np.ndarray | None = field(repr=False)
    """Images that set the ADC ranges, where these are calibrated."""

    @cached_property
    def layers(self) -> tuple[str, ...]:
        ideal = bridge.program(self.module, bridge.PROFILES["ideal"], seed=0)
        return tuple(named_layers(ideal.analog))

    def predict(self, source: Source, description: str, **options: Any) -> pd.DataFrame:
        return bridge.predict(
            self.module, source, device=self.device, description=description, **options
        )

    def program(self, profile: bridge.Profile, seed: int) -> TorchChip:
        chip = bridge.program(
            self.module, profile, seed=seed, calibration=self.calibration, engine=self.engine
        )
        return TorchChip(chip, self.device)

    def coverage(self, images: np.ndarray) -> pd.DataFrame:
        return bridge.coverage(self.module, images)

    def layer_report(self, profile: bridge.Profile, seed: int, images: np.ndarray) -> pd.DataFrame:
        chip = self.program(profile, seed).chip
        return bridge.chips.layer_report(chip, self.module, images)

    def layer_failures(
        self, profile: bridge.Profile, source: Source, **options: Any
    ) -> pd.DataFrame:
        options |= {"calibration": self.calibration, "engine": self.engine, "device": self.device}
        return bridge.chips.layer_failures(self.module, profile, source, **options)
