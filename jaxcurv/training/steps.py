"""One training step: augmentation, gradient, update; and an epoch of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxcurv.data import Normalisation
from jaxcurv.progress import Progress
from jaxcurv.training.checkpoints import State
from jaxcurv.training.recipe import Recipe

Tree = TypeVar("Tree")

Perturb = Callable[[nnx.State, Key[Array, ""]], nnx.State]
"""Gives the parameters that a step computes with: `perturb(params, key)`, of the same structure,
shapes and dtypes; a pure function of JAX."""

_OF_PERTURB = 2
"""What is folded into a step's key for `perturb`; `augment` takes the key's first two parts."""


class Metrics(NamedTuple):
    """What is measured of one batch."""

    loss: Float[Array, ""]
    """Cross-entropy in nats, summed over the batch."""
    correct: Int[Array, ""]
    """Number of samples that are predicted right."""


def augment(
    key: Key[Array, ""], images: UInt8[Array, "batch h w c"], *, padding: int, flip: bool
) -> UInt8[Array, "batch h w c"]:
    """Random crop from black-padded images and random horizontal flip, drawn per image."""
    batch, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)
    if padding:
        corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * padding + 1)
        padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        crop = partial(jax.lax.dynamic_slice, slice_sizes=(height, width, channels))
        images = jax.vmap(lambda image, corner: crop(image, (*corner, 0)))(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def normalise(images: Array, normalisation: Normalisation) -> Array:
    """(image / 255 - mean) / std in float32, of uint8 images `[batch, h, w, c]`."""
    mean, std = (jnp.asarray(v, jnp.float32) for v in (normalisation.mean, normalisation.std))
    return (images.astype(jnp.float32) / 255 - mean) / std


def cross_entropies(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Cross-entropy of each sample in nats, in float32."""
    losses: Array = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
    )
    return losses


def measure(logits: Array, labels: Array, mask: Array | None = None) -> Metrics:
    """Loss and correct predictions of a batch, in float32.

    Args:
      logits: `[batch, classes]`.
      labels: integer `[batch]`.
      mask: bool `[batch]`, the samples that count; all if None.
    """
    losses = cross_entropies(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    if mask is not None:
        losses, correct = jnp.where(mask, losses, 0), correct & mask
    return Metrics(jnp.sum(losses), jnp.sum(correct))


def train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    normalisation: Normalisation,
    state: State,
    data: tuple[Array, ...],
    positions: Int[Array, " batch"],
    key: Key[Array, ""],
    *,
    perturb: Perturb | None = None,
) -> tuple[State, Metrics]:
    """One step of gradient descent on the mean cross-entropy of a batch, or its weighted mean.

    With sample weights w of B samples the gradient is that of

        L = (w_1 l_1 + ... + w_B l_B) / B

    The divisor is B, not the sum of the batch's weights: with weights of mean 1 over the data set
    the expected gradient is then that of the weighted mean over the data set.

    With `perturb` the gradient is taken at the perturbed parameters, by them, and the optimiser
    applies it to the exact ones (a straight-through estimator, Joshi et al., Nature Communications
    2020; Rasch et al., Nature Communications 2023):

        params <- update(params, gradient of L at perturb(params, key))

    Args:
      graphdef: graph of the model, in training mode.
      optimizer: as `make_optimizer` returns it.
      recipe: says how images are augmented.
      normalisation: applied after the augmentation.
      state: the state before the step.
      data: images uint8 `[N, h, w, c]`, labels `[N]` and, if samples have weights, these `[N]`; on
        the device.
      positions: the batch's places in `data`.
      key: random key of the augmentation and of `perturb`.
      perturb: see above; None computes with the exact parameters.

    Returns:
      The state after the step, and the batch's metrics before it, those of the perturbed
      parameters and without sample weights.
    """
    images, labels, *weights = (array[positions] for array in data)
    images = augment(key, images, padding=recipe.crop_padding, flip=recipe.flip)
    inputs = normalise(images, normalisation)

    def objective(params: nnx.State) -> tuple[Array, tuple[nnx.State, Metrics]]:
        # copy=True: the batch statistics must be Variables of this trace, not of the caller's.
        model = nnx.merge(graphdef, params, state.rest, copy=True)
        logits = model(inputs)
        metrics = measure(logits, labels)
        total = metrics.loss
        if weights:
            total = jnp.sum(weights[0] * cross_entropies(logits, labels))
        return total / labels.shape[0], (nnx.state(model, nnx.Not(nnx.Param)), metrics)

    used = state.params
    if perturb is not None:
        used = perturb(state.params, jax.random.fold_in(key, _OF_PERTURB))
    gradient, (rest, metrics) = jax.grad(objective, has_aux=True)(used)
    updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    if recipe.clip_sigma is not None:
        params = clip_weights(params, recipe.clip_sigma)
    return State(params, rest, opt_state), metrics


def clip_weights(params: Tree, sigma: float) -> Tree:
    """Parameters whose weights lie within a number of their standard deviations of zero.

    w -> min(max(w, -b), b) with b = sigma std(w) for each parameter of two or more axes, the
    standard deviation that before clipping, with divisor N - 1 (AIHWKit's LAYER_GAUSSIAN). Biases
    and scales, of one axis, and single weights stay.

    Args:
      params: a pytree of parameters of any shapes.
      sigma: standard deviations, above 0.
    """

    def clip(weights: Array) -> Array:
        if weights.ndim < 2 or weights.size < 2:
            return weights
        bound = sigma * jnp.std(weights, ddof=1)
        return jnp.clip(weights, -bound, bound)

    clipped: Tree = jax.tree.map(clip, params)
    return clipped


def make_optimizer(recipe: Recipe, *, steps: int, warmup: int) -> optax.GradientTransformation:
    """SGD with Nesterov momentum and weight decay; linear warm-up, then cosine decay to zero.

    Args:
      recipe: learning rate, momentum and weight decay; its epochs do not count.
      steps: all steps, those of the warm-up among them; at least 1.
      warmup: steps over which the learning rate rises.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else recipe.learning_rate,
        peak_value=recipe.learning_rate,
        warmup_steps=warmup,
        decay_steps=steps,
    )
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(schedule, momentum=recipe.momentum, nesterov=True),
    )


def training_mode(model: nnx.Module) -> nnx.Module:
    """The model, set to training mode; on a CPU with convolutions as `convolve_in_pieces`."""
    model.train()
    if jax.default_backend() == "cpu":
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.Conv):
                module.conv_general_dilated = convolve_in_pieces
    return model


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Its graph, its parameters, and the rest of its state."""
    graphdef, params, *rest = nnx.split(model, nnx.Param, ...)
    return graphdef, params, rest[0]


def convolve_in_pieces(images: Array, kernel: Array, *args: Any, **settings: Any) -> Array:
    """A convolution whose weight gradient is summed over 16 images at a time.

    XLA's CPU weight gradient of one convolution over 128 images costs several times as much.
    """

    def plain(images: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(images, kernel, *args, **settings)

    @jax.custom_vjp
    def convolve(images: Array, kernel: Array) -> Array:
        return plain(images, kernel)

    def forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return convolve(images, kernel), (images, kernel)

    def backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
        images, kernel = saved
        (images_bar,) = jax.vjp(lambda x: plain(x, kernel), images)[1](cotangent)

        def weight_gradient(images: Array, cotangent: Array) -> Array:
            return jax.vjp(lambda k: plain(images, k), kernel)[1](cotangent)[0]

        cuts = list(range(16, len(images), 16))
        chunks = jnp.split(images, cuts), jnp.split(cotangent, cuts)
        return images_bar, sum(map(weight_gradient, *chunks), jnp.zeros_like(kernel))

    convolve.defvjp(forward, backward)
    return convolve(images, kernel)


def epoch_draws(
    seed: int, epoch: int, count: int, batch_size: int
) -> tuple[Int[np.ndarray, "steps batch"], Key[Array, " steps"]]:
    """The order of the samples in an epoch, by batches, and a key for each step.

    Args:
      seed: the training's.
      epoch: from 1.
      count: samples; those that fill no batch are left out.
      batch_size: samples of a step.
    """
    steps = count // batch_size
    order = np.random.default_rng([seed, epoch]).permutation(count)[: steps * batch_size]
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), epoch), steps)
    return order.reshape(steps, batch_size), keys


def mean_metrics(metrics: list[Metrics], count: int) -> tuple[float, float]:
    """Mean loss in nats and accuracy in [0, 1] over `count` samples, from sums over batches."""
    return (
        float(sum(np.sum(m.loss, dtype=np.float64) for m in metrics)) / count,
        int(sum(np.sum(m.correct) for m in metrics)) / count,
    )


def dispatched_epoch(step: Callable[..., tuple[State, Metrics]]) -> Callable[..., Any]:
    """An epoch whose steps the host dispatches one by one, which is faster on a CPU.

    Args:
      step: `step(state, data, positions, key)`, as `train_step` with its first arguments bound.

    Returns:
      `run(state, data, order, keys, progress)`, with the batches' positions `[steps, batch]` and a
      key for each step. It returns the state and the list of metrics, on the host.
    """
    compiled = jax.jit(step, donate_argnums=0)

    def run(state: State, data: Any, order: np.ndarray, keys: Array, progress: Progress) -> Any:
        metrics = []
        for positions, key in zip(order, keys, strict=True):
            state, metric = compiled(state, data, positions, key)
            metrics.append(metric)
            progress.update(len(positions))
        return state, jax.device_get(metrics)

    return run


def scanned_epoch(step: Callable[..., tuple[State, Metrics]]) -> Callable[..., Any]:
    """An epoch as one compiled scan, for an accelerator; otherwise as `dispatched_epoch`.

    The list of metrics has one entry, whose arrays are `[steps]`.
    """

    @partial(jax.jit, donate_argnums=0)
    def scan(state: State, data: Any, order: Array, keys: Array) -> tuple[State, Metrics]:
        return jax.lax.scan(lambda s, batch: step(s, data, *batch), state, (order, keys))

    def run(state: State, data: Any, order: np.ndarray, keys: Array, progress: Progress) -> Any:
        state, metrics = scan(state, data, order, keys)
        metrics = [jax.device_get(metrics)]
        progress.update(order.size)
        return state, metrics

    return run
