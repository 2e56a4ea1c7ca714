"""AIHWKit's chips of a torch module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from flax import nnx
from torch import nn

import bridge
from bridge.chips.recalibration import batch_norms
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

    def recalibrated(self, images: np.ndarray, batch_size: int) -> TorchChip:
        return TorchChip(bridge.recalibrate(self.chip, images, batch_size=batch_size), self.device)

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
    flax: nnx.Module | None = field(repr=False)
    """The same network in Flax, whose names its weights have in JAX; None where JAX has PyTorch's
    names."""
    stream: str | None = None
    """Label of its chips' random numbers."""

    @cached_property
    def layers(self) -> tuple[str, ...]:
        ideal = bridge.program(self.module, bridge.PROFILES["ideal"], seed=0)
        return tuple(named_layers(ideal.analog))

    @property
    def batch_norms(self) -> int:
        return len(batch_norms(self.module))

    def predict(self, source: Source, description: str, **options: Any) -> pd.DataFrame:
        return bridge.predict(
            self.module, source, device=self.device, description=description, **options
        )

    def program(
        self, profile: bridge.Profile, seed: int, *, digital_layers: Sequence[str] = ()
    ) -> TorchChip:
        chip = bridge.program(
            self.module,
            profile,
            seed=seed,
            calibration=self.calibration,
            engine=self.engine,
            digital_layers=digital_layers,
            stream=self.stream,
        )
        return TorchChip(chip, self.device)

    def at_once(self, profile: bridge.Profile, batch_size: int) -> int:
        return 1

    def predict_chips(
        self, chips: Sequence[TorchChip], source: Source, description: str, **options: Any
    ) -> list[pd.DataFrame]:
        return [
            one.predict(source, f"chip {one.chip.seed}: {description}", **options) for one in chips
        ]

    def weight_moments(self, profile: bridge.Profile) -> dict[str, np.ndarray]:
        if self.flax is not None:
            moments = bridge.weight_moments(self.module, profile, like=self.flax)
            return {
                f"{which}/{'.'.join(map(str, path))}": np.asarray(variable[...])
                for which in ("mean", "variance")
                for path, variable in nnx.to_flat_state(nnx.state(getattr(moments, which)))
            }
        firsts: dict[int, str] = {}
        for name, weight in self.module.named_parameters(remove_duplicate=False):
            firsts.setdefault(id(weight), name)  # of tied weights JAX has the first name alone
        return {
            f"{which}/{firsts[id(self.module.get_parameter(name))]}": getattr(one, which).numpy()
            for name, one in bridge.weight_moments(self.module, profile).items()
            for which in ("mean", "variance")
        }

    def output_noise(self, profile: bridge.Profile, source: Source, **options: Any) -> pd.DataFrame:
        return bridge.output_noise(
            self.module, profile, source, calibration=self.calibration, **options
        )

    def coverage(self, images: np.ndarray) -> pd.DataFrame:
        return bridge.coverage(self.module, images)

    def layer_report(self, profile: bridge.Profile, seed: int, images: np.ndarray) -> pd.DataFrame:
        chip = self.program(profile, seed).chip
        return bridge.chips.layer_report(chip, self.module, images)

    def layer_failures(
        self, profile: bridge.Profile, source: Source, **options: Any
    ) -> pd.DataFrame:
        options |= {"calibration": self.calibration, "engine": self.engine, "device": self.device}
        options["stream"] = self.stream
        return bridge.chips.layer_failures(self.module, profile, source, **options)
