"""Chips in JAX of a function: neither torch nor AIHWKit is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from bridge.chips.profiles import PROFILES, Profile
from bridge.jax_chips import (
    Chip,
    Programmed,
    analog,
    layer_failures,
    layer_report,
    output_noise,
    predict,
    predict_chips,
    recalibrate,
    weight_moments,
    with_digital_of,
)
from bridge.jax_chips.chips import paths
from bridge.jax_chips.groups import fitting
from bridge.jax_chips.keys import chip_key
from bridge.jax_chips.recalibration import count_batch_norms
from jaxcurv.data import Source


@dataclass(frozen=True, eq=False)
class JaxChip:
    """See `experiments.chips.protocol.Chip`."""

    chip: Chip
    seed: int
    stream: str | None
    measured: Programmed | None = None
    """What holds the BatchNorm statistics that the chip measured itself; None before it did."""

    def at(self, time: float) -> JaxChip:
        return replace(self, chip=self.chip.at(time))

    def recalibrated(self, images: np.ndarray, batch_size: int) -> JaxChip:
        made = recalibrate(self.chip, self.weights, images, batch_size=batch_size)
        return replace(self, measured=made)

    def predict(self, source: Source, description: str, **options: Any) -> pd.DataFrame:
        return predict(self.chip, self.weights, source, description=description, **options)

    def converters(self, unseen: np.ndarray) -> pd.DataFrame:
        ranges = self.chip.adc_ranges
        shares = self.chip.clipped_share(self.weights, unseen) if ranges else {}
        rows = [
            (f"{layer}[{number}]", bound, shares[layer][number])
            for layer, bounds in ranges.items()
            for number, bound in enumerate(bounds.tolist())
        ]
        return pd.DataFrame(rows, columns=["tile", "range", "clipped_share"])

    def is_finite(self) -> bool:
        return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(self.weights.params))

    @cached_property
    def weights(self) -> Programmed:
        """What the chip's devices hold, and its digital parameters."""
        programmed = self.chip.program(self.chip.params, self.key)
        if self.measured is None:
            return programmed
        return with_digital_of(self.chip, programmed, self.measured)

    @property
    def key(self) -> jax.Array:
        """Which chip, as JAX names it."""
        return chip_key(self.seed, self.stream)


@dataclass(frozen=True, eq=False)
class JaxNetwork:
    """See `experiments.chips.protocol.Programmable`."""

    function: Callable[..., Any]
    params: Any = field(repr=False)
    images: np.ndarray = field(repr=False)
    """Those that set the ADC ranges; examples where none are calibrated."""
    stream: str | None = None
    """Label of its chips' random numbers."""
    _made: dict[tuple[Profile, tuple[str, ...]], Chip] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> str:
        return jax.devices()[0].device_kind

    @property
    def layers(self) -> tuple[str, ...]:
        return self._chip(PROFILES["ideal"]).layers

    @property
    def batch_norms(self) -> int:
        return count_batch_norms(self.params)

    def predict(self, source: Source, description: str, **options: Any) -> pd.DataFrame:
        # An ideal chip is the function itself.
        exact = Programmed(self.params, (), jax.random.key(0))
        ideal = self._chip(PROFILES["ideal"])
        return predict(ideal, exact, source, description=description, **options)

    def program(
        self, profile: Profile, seed: int, *, digital_layers: Sequence[str] = ()
    ) -> JaxChip:
        return JaxChip(self._chip(profile, digital_layers), seed, self.stream)

    def at_once(self, profile: Profile, batch_size: int) -> int:
        if jax.devices()[0].platform == "cpu":
            return 1
        return fitting(self._chip(profile), batch_size)

    def predict_chips(
        self, chips: Sequence[JaxChip], source: Source, description: str, **options: Any
    ) -> list[pd.DataFrame]:
        if len(chips) < 2:
            return [
                one.predict(source, f"chip {one.seed}: {description}", **options) for one in chips
            ]
        table = predict_chips(
            chips[0].chip,
            jnp.stack([one.key for one in chips]),
            source,
            at_once=len(chips),
            description=f"chips from {chips[0].seed}: {description}",
            **options,
        )
        return [one.drop(columns="chip").reset_index(drop=True) for _, one in table.groupby("chip")]

    def weight_moments(self, profile: Profile) -> dict[str, np.ndarray]:
        moments = weight_moments(self._chip(profile))
        return {
            f"{which}/{name}": np.asarray(leaf)
            for which in ("mean", "variance")
            for name, leaf in zip(
                paths(self.params), jax.tree.leaves(getattr(moments, which)), strict=True
            )
        }

    def output_noise(self, profile: Profile, source: Source, **options: Any) -> pd.DataFrame:
        return output_noise(self._chip(profile), source, **options)

    def coverage(self, images: np.ndarray) -> pd.DataFrame:
        return self._chip(PROFILES["ideal"]).coverage

    def layer_report(self, profile: Profile, seed: int, images: np.ndarray) -> pd.DataFrame:
        chip = self.program(profile, seed)
        return layer_report(chip.chip, chip.weights, images)

    def layer_failures(self, profile: Profile, source: Source, **options: Any) -> pd.DataFrame:
        return layer_failures(self._chip(profile), source, stream=self.stream, **options)

    def _chip(self, profile: Profile, digital_layers: Sequence[str] = ()) -> Chip:
        """The chip of a profile, made once: what it compiles is kept."""
        key = profile, tuple(digital_layers)
        if key not in self._made:
            self._made[key] = analog(
                *(self.function, self.params, profile, self.images), digital_layers=digital_layers
            )
        return self._made[key]
