"""A memory device of your own, its chips in JAX and the moments of their weights."""

# --8<-- [start:device]
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np

import bridge


@dataclass(frozen=True)
class Decaying:
    """Programming errors of one spread; then all weights decay as (1 + t / 1 s)^-nu."""

    spread: float = 0.02  # of the largest weight of a tile
    nu: float = 0.05
    t_inference: float = 20.0
    compensation: None = None
    name: ClassVar[str] = "decaying"

    def program(self, key, targets):
        return targets + self.spread * jax.random.normal(key, targets.shape), None

    def read(self, key, programmed, state):
        return programmed * (1 + self.t_inference) ** -self.nu

    def moments(self, targets):
        decay = (1 + self.t_inference) ** -self.nu
        variance = np.full(targets.shape, (decay * self.spread) ** 2)
        return decay * targets, variance, decay * np.abs(targets), np.abs(targets)


# --8<-- [end:device]


# --8<-- [start:chip]
images = np.random.default_rng(0).normal(size=(40, 784)).astype(np.float32)
params = jax.random.normal(jax.random.key(0), (784, 10)) / 28
profile = bridge.Profile(memory=Decaying(t_inference=3600.0))
made = bridge.analog(lambda params, images: images @ params, params, profile, images)
print(made.apply(made.program(params, jax.random.key(0)), images).shape)
print(bridge.jax_chips.weight_moments(made).variance.mean())
# --8<-- [end:chip]
