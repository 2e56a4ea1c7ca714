"""Training image classifiers: the standard SGD recipe, validated and checkpointed every epoch.

The data set lives on the device as uint8 and a batch is gathered, augmented and normalised inside
the compiled step. On an accelerator one epoch is one compiled scan; on the CPU, where XLA runs
loops many times slower, the same step is dispatched from the host.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxcurv.data import Arrays, Normalisation
from jaxcurv.progress import progress
from jaxcurv.training.checkpoints import (
    BuildModel,
    Epoch,
    State,
    evaluation_model,
    open_manager,
    read_best,
    restore,
    save,
)
from jaxcurv.training.recipe import Recipe
from jaxcurv.training.steps import (
    Metrics,
    Perturb,
    dispatched_epoch,
    epoch_draws,
    make_optimizer,
    mean_metrics,
    measure,
    normalise,
    scanned_epoch,
    split_model,
    train_step,
    training_mode,
)


def _batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of every sample in fixed-size batches, and which of them are not padding."""
    for start in range(0, count, batch_size):
        positions = np.arange(start, start + batch_size)
        yield np.minimum(positions, count - 1), positions < count


def fit(
    build: BuildModel,
    train: Arrays,
    validation: Arrays,
    normalisation: Normalisation,
    recipe: Recipe,
    *,
    seed: int,
    directory: Path,
    perturb: Perturb | None = None,
) -> list[Epoch]:
    """Trains a model and leaves its best and its newest checkpoint under `directory`, and those
    that the recipe keeps.

    An interrupted call goes on after the last finished epoch; every random draw is keyed by the
    seed and the epoch, so that an undisturbed run would have got there too. A directory belongs
    to one set of arguments: the caller chooses it so.

    With `perturb` the gradient of each step is that at perturbed parameters, such as those of a
    chip programmed anew, and changes the exact ones. Validation, the choice of the best epoch and
    the checkpoints are of the exact parameters; training loss and accuracy of the perturbed.

        perturb = bridge.jax_chips.training_noise(model, bridge.PROFILES["pcm"], images)
        fit(build, train, validation, normalisation, recipe, seed=0, directory=folder,
            perturb=perturb)

    Args:
      build: makes the model, as `build(dtype)`; must return the same weights every time.
      train, validation: images uint8 `[N, H, W, C]` with labels.
      normalisation: channel mean and standard deviation applied before the model.
      recipe: the optimiser's settings.
      seed: keys the order of the samples, the augmentation and `perturb`.
      directory: where the orbax checkpoints go.
      perturb: `perturb(params, key)`, the parameters that a step computes with; the key is made of
        seed, epoch and step. None trains on the exact parameters.

    Returns:
      One row an epoch, those before an interruption included.

    Raises:
      ValueError: an empty fold, fewer training images than one batch, or a damaged checkpoint.
      FloatingPointError: the loss is no longer finite.
    """
    if len(train) < recipe.batch_size or len(validation) == 0:
        raise ValueError(
            f"{len(train)} training and {len(validation)} validation images are too few for "
            f"batches of {recipe.batch_size}; lower the batch size or take more data"
        )
    make = partial(build, jnp.dtype(recipe.precision))
    train_graph, shapes, rest_shapes = split_model(training_mode(nnx.eval_shape(make)))
    eval_graph, _, _ = split_model(evaluation_model(build))

    steps = len(train) // recipe.batch_size
    optimizer = make_optimizer(
        recipe, steps=recipe.epochs * steps, warmup=recipe.warmup_steps(steps)
    )
    step = partial(train_step, train_graph, optimizer, recipe, normalisation, perturb=perturb)
    run_epoch = dispatched_epoch(step) if jax.default_backend() == "cpu" else scanned_epoch(step)

    @jax.jit
    def evaluate(state: State, data: tuple[Array, Array], positions: Array, mask: Array) -> Metrics:
        model = nnx.merge(eval_graph, state.params, state.rest)
        return measure(
            model(normalise(data[0][positions], normalisation)), data[1][positions], mask
        )

    def validate(state: State) -> tuple[float, float]:
        batches = _batches(len(validation), recipe.batch_size)
        metrics = jax.device_get([evaluate(state, held_out, *batch) for batch in batches])
        return mean_metrics(metrics, len(validation))

    data, held_out = (jax.device_put((a.images, a.labels)) for a in (train, validation))
    history: list[Epoch] = []
    with open_manager(directory, recipe.keep_every) as manager:
        if (latest := manager.latest_step()) is not None:
            read_best(manager, build)  # a damaged one is told by what can make it again
            optimizer_shapes = jax.eval_shape(optimizer.init, shapes)
            state, history = restore(manager, latest, State(shapes, rest_shapes, optimizer_shapes))
        else:
            _, params, rest = split_model(make())
            state = State(params, rest, optimizer.init(params))
        samples = steps * recipe.batch_size
        done = len(history) * samples
        with progress(recipe.epochs * samples, "train", initial=done) as shown:
            for epoch in range(len(history) + 1, recipe.epochs + 1):
                order, keys = epoch_draws(seed, epoch, len(train), recipe.batch_size)
                state, metrics = run_epoch(state, data, order, keys, shown)
                row = Epoch(epoch, *mean_metrics(metrics, samples), *validate(state))
                if not math.isfinite(row.train_loss):
                    raise FloatingPointError(
                        f"training diverged in epoch {epoch}: the loss is not finite; "
                        "lower the learning rate or lengthen the warm-up"
                    )
                history.append(row)
                save(manager, state, history)
                shown.note(f"epoch {epoch}, validation accuracy {row.validation_accuracy:.4f}")
    return history
