"""A student: a tiny network that tells from the input alone how likely a chip is to fail on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jaxtyping import Array, Float, Shaped

from bridge.checks import require_count, require_finite, require_seed, same_length, vector
from bridge.jax_chips.chips import paths
from bridge.routing.student_network import (
    Architecture,
    abstract_network,
    architecture_for,
    initial_weights,
    log_odds,
)
from jaxcurv.progress import progress
from jaxcurv.rows import require_labels_of

_CHUNK = 64
"""Inputs scored at once. Always as many, so that no score depends on what it is computed beside."""

_FEWEST = 20
"""Samples below which nothing is fitted."""

_HELD_OUT = 10
"""One sample in so many chooses the epoch and trains no weight."""


@dataclass(frozen=True, eq=False)
class Student:
    """A tiny network that scores inputs by how likely a chip is to fail on them.

    It is made by `fit_student`. Call it with inputs as it was fitted on, `[n, height, width,
    channel]` or `[n, features]`: it returns the predicted share of chips that fail on each, float64
    `[n]` in [0, 1], higher for more fragile ones. A score does not depend on the other inputs.

    Attributes:
      architecture: the size of its network.
      inputs: whether it was fitted on "uint8" pixels or on "float" values.
      mean: mean of each channel, or feature, of the samples that it was fitted on.
      std: standard deviation of each channel, or feature.
      weights: weights of its network by path, float32.
      held_out_loss: mean cross-entropy, in nats, on the tenth of the samples that chose the epoch:
        the lowest of all epochs, so that it flatters a little.
      constant_loss: the same of the best constant prediction. A student that is no better has
        learnt nothing.
    """

    architecture: Architecture
    inputs: Literal["uint8", "float"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Mapping[str, npt.NDArray[np.float32]] = field(repr=False)
    held_out_loss: float
    constant_loss: float

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input, as `bridge.coverage` counts them."""
        return self.architecture.macs

    def __call__(self, images: Shaped[np.ndarray, "batch ..."]) -> npt.NDArray[np.float64]:
        """Predicted share of chips that fail on each input.

        Args:
          images: inputs in the units, and of the shape, that the student was fitted on.

        Raises:
          ValueError: another shape or kind of numbers, or values that are not finite.
        """
        given = np.asarray(images)
        if given.shape[1:] != self.architecture.shape or given.ndim < 2:
            raise ValueError(
                f"the student takes inputs {self.architecture.shape}, a batch of them; got shape "
                f"{given.shape}"
            )
        kind = _kind(given)
        if kind != self.inputs:
            raise ValueError(
                f"the student was fitted on {self.inputs} inputs and got {given.dtype}: give them "
                "as they were, normalised or not"
            )
        odds = _scored(self.architecture, self.state, given, self.mean, self.std)
        return _probability(odds)

    @property
    def state(self) -> Any:
        """Its weights as an NNX state."""
        _, shapes = abstract_network(self.architecture)
        leaves = [jnp.asarray(self.weights[name]) for name in paths(shapes)]
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def fit_student(
    images: Shaped[np.ndarray, "batch ..."],
    targets: npt.ArrayLike,
    *,
    budget_macs: int,
    seed: int,
    epochs: int = 15,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
) -> Student:
    """Fits a tiny network to how often chips fail on samples.

    The loss is the cross-entropy of soft labels, with t the target and p the prediction:

        -t log p - (1 - t) log(1 - p)

    Adam with decoupled weight decay (0.01) and a cosine decay to zero minimises it on nine tenths
    of the samples. The other tenth chooses the epoch. The fit is the same again for the same
    samples, seed, device and versions.

    Fit it on training samples and try it on others. Fit it on samples that the digital model gets
    right, if it is to tell these apart. For the rank of another score give
    `score.rank(pct=True)` of a pandas Series.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> images = rng.integers(0, 256, (200, 8, 8, 1), np.uint8)
    >>> images[:100] //= 4
    >>> student = fit_student(images, np.arange(200) < 100, budget_macs=5000, seed=0, epochs=5)
    >>> bool(student(images[:100]).mean() > student(images[100:]).mean())
    True

    Args:
      images: `[n, height, width, channel]` or vectors `[n, features]`, at least 20; uint8, or
        floats in any unit.
      targets: the share of chips on which each sample fails, in [0, 1]; or whether it fails, bool.
      budget_macs: the most multiply-accumulates for one input. For 5 % of a network's forward pass
        give `int(0.05 * bridge.coverage(network, images)["macs"].sum())`.
      seed: seed of the initial weights, the order of the samples and the tenth that is held out.
      epochs: passes over the samples.
      batch_size: samples a step.
      learning_rate: that of the first step.

    Raises:
      ValueError: targets that are all the same or not in [0, 1], too few samples, a budget that
        not even a logistic regression fits, values that are not finite, other dtypes or shapes, or
        targets in another order than the images by their pandas index.
    """
    given, wanted = _checked(images, targets)
    seed, epochs = require_seed(seed), require_count("epochs", epochs)
    batch_size = require_count("batch_size", batch_size)
    require_finite("the learning rate", learning_rate, positive=True)
    architecture = architecture_for(given.shape[1:], require_count("budget_macs", budget_macs))
    mean, std = _moments(given)
    key = jax.random.key(seed)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), len(given)))
    held, kept = np.split(order, [-(-len(given) // _HELD_OUT)])
    size = min(batch_size, len(kept))
    steps = len(kept) // size
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(learning_rate, epochs * steps), weight_decay=0.01
    )
    step = jax.jit(partial(_step, architecture, optimizer))
    share = np.clip(wanted[kept].mean(dtype=np.float64), 1e-6, 1 - 1e-6)
    constant = float(np.log(share / (1 - share)))
    weights = initial_weights(architecture, seed, constant)
    state = optimizer.init(weights)
    best, lowest = weights, np.inf
    with progress(epochs * steps * size, "student") as shown:
        for epoch in range(1, epochs + 1):
            mixed = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), kept))
            for positions in mixed[: steps * size].reshape(steps, size):
                batch = _standardised(given[positions], mean, std)
                weights, state = step(weights, state, batch, wanted[positions])
                shown.update(size)
            odds = _scored(architecture, weights, given[held], mean, std)
            if not np.isfinite(odds).all():
                raise ValueError(
                    f"the student's loss is not finite at a learning rate of {learning_rate}: "
                    "lower it"
                )
            loss = _cross_entropy(odds, wanted[held])
            if loss < lowest:
                best, lowest = weights, loss
    named = zip(paths(best), map(np.asarray, jax.tree.leaves(best)), strict=True)
    return Student(
        architecture,
        _kind(given),
        tuple(mean.tolist()),
        tuple(std.tolist()),
        dict(named),
        lowest,
        _cross_entropy(np.full(len(held), constant), wanted[held]),
    )


def _checked(
    images: Shaped[np.ndarray, "batch ..."], targets: npt.ArrayLike
) -> tuple[np.ndarray, npt.NDArray[np.float32]]:
    require_labels_of(images, targets, "targets")
    given = np.asarray(images)
    if given.ndim not in (2, 4) or 0 in given.shape[1:]:
        raise ValueError(
            "images must be [n, height, width, channel], or vectors [n, features]; got shape "
            f"{given.shape}"
        )
    _kind(given)
    wanted = vector("targets", targets, "bfiu", "numbers in [0, 1], or bools").astype(np.float32)
    same_length(images=np.zeros(len(given)), targets=wanted)
    if len(given) < _FEWEST:
        raise ValueError(f"{len(given)} samples are too few to fit a student: give {_FEWEST}")
    if not ((wanted >= 0) & (wanted <= 1)).all():  # NaN is neither
        raise ValueError(
            "targets must lie in [0, 1], such as the share of chips on which a sample fails; of "
            "another score give the rank, score.rank(pct=True)"
        )
    if (wanted == wanted[0]).all():
        raise ValueError(
            f"every target is {wanted[0]:g}: there is nothing to learn; give samples that fail and "
            "samples that do not"
        )
    return given, wanted


def _kind(images: np.ndarray) -> Literal["uint8", "float"]:
    if images.dtype == np.uint8:
        return "uint8"
    if images.dtype.kind != "f":
        raise ValueError(f"inputs must be uint8 or floats; got {images.dtype}")
    if not (np.abs(images) <= np.finfo(np.float32).max).all():  # NaN is not
        raise ValueError("inputs must be finite in float32; some are NaN, infinite or too large")
    return "float"


def _moments(images: np.ndarray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each channel; 1 where it is constant."""
    axes = tuple(range(images.ndim - 1))
    count = np.prod(images.shape[:-1])
    mean = sum(part.sum(axes, dtype=np.float64) for part in _chunks(images)) / count
    variance = sum(((part - mean) ** 2).sum(axes) for part in _chunks(images)) / count
    return mean, np.where(variance > 0, np.sqrt(variance), 1.0)


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    return (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))


def _standardised(images: np.ndarray, mean: Any, std: Any) -> npt.NDArray[np.float32]:
    result: npt.NDArray[np.float32] = (images.astype(np.float32) - np.float32(mean)) / np.float32(
        std
    )
    return result


def _step(
    architecture: Architecture,
    optimizer: optax.GradientTransformation,
    weights: Any,
    state: Any,
    inputs: Float[Array, "batch ..."],
    targets: Float[Array, " batch"],
) -> tuple[Any, Any]:
    def loss(weights: Any) -> Array:
        odds = log_odds(architecture, weights, inputs)
        return optax.sigmoid_binary_cross_entropy(odds, targets).mean()

    updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
    return optax.apply_updates(weights, updates), state


_jitted = jax.jit(log_odds, static_argnums=0)


def _scored(
    architecture: Architecture, weights: Any, images: np.ndarray, mean: Any, std: Any
) -> npt.NDArray[np.float64]:
    """Log odds of each input, in batches of one shape."""
    found = np.empty(len(images))
    with jax.default_matmul_precision("highest"):
        for start in range(0, len(images), _CHUNK):
            part = _standardised(images[start : start + _CHUNK], mean, std)
            padded = np.zeros((_CHUNK, *part.shape[1:]), np.float32)
            padded[: len(part)] = part
            odds = _jitted(architecture, weights, padded)
            found[start : start + len(part)] = np.asarray(odds)[: len(part)]
    return found


def _probability(odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -odds))


def _cross_entropy(odds: npt.NDArray[np.float64], targets: npt.NDArray[np.float32]) -> float:
    """Mean over samples, in nats."""
    losses = np.logaddexp(0, odds) - targets * odds
    return float(losses.mean())
