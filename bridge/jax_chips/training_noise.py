"""Weights of a chip that is programmed anew at each step of training."""

from collections.abc import Callable

import numpy as np
from flax import nnx
from jaxtyping import Array, Key, Shaped

from bridge.chips.profiles import Profile
from bridge.jax_chips.chips import analog


def training_noise(
    model: nnx.Module, profile: Profile, images: Shaped[Array | np.ndarray, "batch ..."]
) -> Callable[[nnx.State, Key[Array, ""]], nnx.State]:
    """The noise of a profile's weights as the `perturb` of `jaxcurv.training.fit`.

        perturb = bridge.jax_chips.training_noise(model, bridge.PROFILES["adc+wnoise+pcm"], images)

    A step's weights are those of a chip of its key, aged to the memory's `t_inference`; what stays
    digital is exact. Only what the weights get is in it: converters, output noise and noise that is
    drawn at each operation stay out, also where drift compensation reads a tile. Training on such
    weights, with the gradient applied to the exact ones, is that of Joshi et al. (Nature
    Communications 2020) and Rasch et al. (Nature Communications 2023).

    Args:
      model: a network of the structure that is trained, with weights; not changed.
      profile: the non-idealities; a memory, or weight noise that is drawn once for each chip, is
        among them.
      images: a few examples `[batch, ...]` as the network takes them.

    Returns:
      `perturb(params, key)`: the programmed parameters, of the structure of `nnx.split(model,
      nnx.Param, ...)[1]`, in float32; for `jax.jit`.

    Raises:
      ValueError: the profile has no noise of programmed weights, or `bridge.analog` refuses the
        network, such as one without matrix products.
    """
    part = profile.of_weights
    if part is None:
        raise ValueError(
            f"profile {profile.name} has no noise of programmed weights, which training draws: "
            "give one with a memory or with weight noise that is drawn per_chip"
        )
    network = nnx.clone(model)
    network.eval()
    graphdef, params, *rest = nnx.split(network, nnx.Param, ...)

    def logits_fn(params: nnx.State, images: Array) -> Array:
        logits: Array = nnx.merge(graphdef, params, *rest, copy=True)(images)
        return logits

    chip = analog(logits_fn, params, part, images)

    def perturb(params: nnx.State, key: Key[Array, ""]) -> nnx.State:
        programmed: nnx.State = chip.program(params, key).params
        return programmed

    return perturb
