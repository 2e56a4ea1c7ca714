"""Training that goes on from given weights, at a fixed number of gradient steps."""

import math
from collections.abc import Callable
from functools import partial
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxcurv.data import Arrays, Normalisation
from jaxcurv.progress import progress
from jaxcurv.training.checkpoints import BuildModel, State, evaluation_model
from jaxcurv.training.recipe import Recipe
from jaxcurv.training.steps import (
    Perturb,
    dispatched_epoch,
    epoch_draws,
    make_optimizer,
    mean_metrics,
    scanned_epoch,
    split_model,
    train_step,
    training_mode,
)

Tune = Callable[[int, Float[np.ndarray, " N"]], nnx.Module]
"""`tune(seed, weights)`: the fine-tuned network of a seed and of sample weights `[N]`."""


def fine_tuning(
    build: BuildModel,
    train: Arrays,
    normalisation: Normalisation,
    recipe: Recipe,
    *,
    steps: int,
    warmup: int = 0,
    perturb: Perturb | None = None,
) -> Tune:
    """Makes what fine-tunes a network for a number of gradient steps.

        tune = fine_tuning(build, train, normalisation, recipe, steps=300)
        network = tune(0, np.ones(len(train)))

    The network is that of the last step: no validation fold chooses among epochs, so that networks
    of one number of steps have the same budget. The order of the samples, the augmentation and the
    keys of `perturb` are those of the seed, whatever the weights. The step compiles once.

    The loss of a batch is the weighted mean that `train_step` has. BatchNorm's statistics count
    every sample once, whatever its weight.

    Args:
      build: makes the network with its weights, as `build(dtype)`; new arrays at every call.
      train: images uint8 `[N, H, W, C]` with labels.
      normalisation: channel mean and standard deviation applied before the model.
      recipe: the optimiser's settings and the augmentation; its epochs and those of its warm-up do
        not count.
      steps: gradient steps; 0 leaves the network as it is.
      warmup: steps over which the learning rate rises to its peak; it falls to zero from there.
      perturb: as for `fit`.

    Returns:
      `tune(seed, weights)`, with sample weights `[N]`, finite and not negative: the network in
      float32 and evaluation mode. It raises a ValueError for other weights, and a
      FloatingPointError where the loss is no longer finite.

    Raises:
      ValueError: fewer images than one batch.
    """
    if len(train) < recipe.batch_size:
        raise ValueError(
            f"{len(train)} training images are too few for batches of {recipe.batch_size}; lower "
            "the batch size or take more data"
        )
    make = partial(build, jnp.dtype(recipe.precision))
    graph, _, _ = split_model(training_mode(nnx.eval_shape(make)))
    eval_graph, _, _ = split_model(evaluation_model(build))
    optimizer = make_optimizer(recipe, steps=max(steps, 1), warmup=warmup)
    step = partial(train_step, graph, optimizer, recipe, normalisation, perturb=perturb)
    run = dispatched_epoch(step) if jax.default_backend() == "cpu" else scanned_epoch(step)
    images, labels = jax.device_put((train.images, train.labels))

    def tune(seed: int, weights: Float[np.ndarray, " N"]) -> nnx.Module:
        weights = np.asarray(weights, np.float32)
        if weights.shape != (len(train),) or not np.isfinite(weights).all() or weights.min() < 0:
            raise ValueError(
                f"weights must be {len(train)} finite numbers, one a training image, none "
                f"negative; got shape {weights.shape}"
            )
        _, params, rest = split_model(make())
        state = State(params, rest, optimizer.init(params))
        data = images, labels, jax.device_put(weights)
        done = 0
        with progress(steps * recipe.batch_size, "fine-tune") as shown:
            for epoch in count(1):
                if done == steps:
                    break
                order, keys = epoch_draws(seed, epoch, len(train), recipe.batch_size)
                order, keys = order[: steps - done], keys[: steps - done]
                state, metrics = run(state, data, order, keys, shown)
                done += len(order)
                if not math.isfinite(mean_metrics(metrics, order.size)[0]):
                    raise FloatingPointError(
                        f"fine-tuning diverged within {done} steps: the loss is not finite; lower "
                        "the learning rate"
                    )
        tuned: nnx.Module = nnx.merge(eval_graph, state.params, state.rest)
        return tuned

    return tune
