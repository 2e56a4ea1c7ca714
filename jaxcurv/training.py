"""Training image classifiers: the standard SGD recipe, validated and checkpointed every epoch.

The data set lives on the device as uint8 and a batch is gathered, augmented and normalised inside
the compiled step. On an accelerator one epoch is one compiled scan; on the CPU, where XLA runs
loops many times slower, the same step is dispatched from the host.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8
from orbax.checkpoint.checkpoint_managers import preservation_policy
from tqdm import tqdm

from jaxcurv.data import Arrays, Normalisation
from jaxcurv.recipe import Recipe
from jaxcurv.sealed import check_seal, hash_tree, seal

_TRAINED_ELSEWHERE = 0
"""The step of a checkpoint that `keep_trained` left; epochs count from 1."""

BuildModel = Callable[[Any], nnx.Module]
"""Makes the model with a computation dtype, the same weights at every call."""


class Epoch(NamedTuple):
    """One row of the training history; losses are mean cross-entropies in nats."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


class _State(NamedTuple):
    """Everything a step changes; `rest` holds batch statistics and other non-parameters."""

    params: nnx.State
    rest: nnx.State
    optimizer: optax.OptState


class _Metrics(NamedTuple):
    loss: Float[Array, ""]  # summed over the batch
    correct: Int[Array, ""]


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


def _normalise(images: Array, normalisation: Normalisation) -> Array:
    mean, std = (jnp.asarray(v, jnp.float32) for v in (normalisation.mean, normalisation.std))
    return (images.astype(jnp.float32) / 255 - mean) / std


def _measure(logits: Array, labels: Array, mask: Array | None = None) -> _Metrics:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    if mask is not None:
        losses, correct = jnp.where(mask, losses, 0), correct & mask
    return _Metrics(jnp.sum(losses), jnp.sum(correct))


def _train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    normalisation: Normalisation,
    state: _State,
    data: tuple[Array, Array],
    positions: Int[Array, " batch"],
    key: Key[Array, ""],
) -> tuple[_State, _Metrics]:
    images, labels = data[0][positions], data[1][positions]
    images = augment(key, images, padding=recipe.crop_padding, flip=recipe.flip)
    inputs = _normalise(images, normalisation)

    def objective(params: nnx.State) -> tuple[Array, tuple[nnx.State, _Metrics]]:
        # copy=True: the batch statistics must be Variables of this trace, not of the caller's.
        model = nnx.merge(graphdef, params, state.rest, copy=True)
        metrics = _measure(model(inputs), labels)
        return metrics.loss / labels.shape[0], (nnx.state(model, nnx.Not(nnx.Param)), metrics)

    gradient, (rest, metrics) = jax.grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
    return _State(optax.apply_updates(state.params, updates), rest, opt_state), metrics


def _batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of every sample in fixed-size batches, and which of them are not padding."""
    for start in range(0, count, batch_size):
        positions = np.arange(start, start + batch_size)
        yield np.minimum(positions, count - 1), positions < count


def _optimizer(recipe: Recipe, steps_per_epoch: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if recipe.warmup_epochs else recipe.learning_rate,
        peak_value=recipe.learning_rate,
        warmup_steps=round(recipe.warmup_epochs * steps_per_epoch),
        decay_steps=recipe.epochs * steps_per_epoch,
    )
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(schedule, momentum=recipe.momentum, nesterov=True),
    )


def _convolve(images: Array, kernel: Array, *args: Any, **settings: Any) -> Array:
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


def _split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    graphdef, params, *rest = nnx.split(model, nnx.Param, ...)
    return graphdef, params, rest[0]


def _manager(directory: Path) -> ocp.CheckpointManager:
    """Keeps the newest checkpoint, to resume from, and the best on the validation fold.

    Raises:
      ValueError: Orbax cannot read the metrics of those there are.
    """
    accuracy = lambda metrics: metrics["validation_accuracy"]  # noqa: E731
    options = ocp.CheckpointManagerOptions(
        best_fn=accuracy,
        preservation_policy=preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(1),
                preservation_policy.BestN(get_metric_fn=accuracy, n=1),
            ]
        ),
    )
    try:
        return ocp.CheckpointManager(directory.absolute(), options=options)
    except ValueError as error:
        raise ValueError(
            f"the metrics of a checkpoint in {directory} are damaged ({error}): delete the folder "
            "and run again"
        ) from error


def fit(
    build: BuildModel,
    train: Arrays,
    validation: Arrays,
    normalisation: Normalisation,
    recipe: Recipe,
    *,
    seed: int,
    directory: Path,
) -> list[Epoch]:
    """Trains a model and leaves its best and its newest checkpoint under `directory`.

    An interrupted call goes on after the last finished epoch; every random draw is keyed by the
    seed and the epoch, so that an undisturbed run would have got there too. A directory belongs
    to one set of arguments: the caller chooses it so.

    Args:
      build: makes the model, as `build(dtype)`; must return the same weights every time.
      train, validation: images uint8 `[N, H, W, C]` with labels.
      normalisation: channel mean and standard deviation applied before the model.
      recipe: the optimiser's settings.
      seed: keys the order of the samples and the augmentation.
      directory: where the orbax checkpoints go.

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
    model = build(jnp.dtype(recipe.precision))
    model.train()
    if jax.default_backend() == "cpu":
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.Conv):
                module.conv_general_dilated = _convolve
    train_graph, params, rest = _split(model)
    eval_graph, _, _ = _split(_evaluation_model(build))

    steps = len(train) // recipe.batch_size
    optimizer = _optimizer(recipe, steps)
    state = _State(params, rest, optimizer.init(params))
    step = partial(_train_step, train_graph, optimizer, recipe, normalisation)
    run_epoch = _dispatched_epoch(step) if jax.default_backend() == "cpu" else _scanned_epoch(step)

    @jax.jit
    def evaluate(
        state: _State, data: tuple[Array, Array], positions: Array, mask: Array
    ) -> _Metrics:
        model = nnx.merge(eval_graph, state.params, state.rest)
        return _measure(
            model(_normalise(data[0][positions], normalisation)), data[1][positions], mask
        )

    def validate(state: _State) -> tuple[float, float]:
        batches = _batches(len(validation), recipe.batch_size)
        metrics = jax.device_get([evaluate(state, held_out, *batch) for batch in batches])
        return _mean(metrics, len(validation))

    data, held_out = (jax.device_put((a.images, a.labels)) for a in (train, validation))
    key = jax.random.key(seed)
    history: list[Epoch] = []
    with _manager(directory) as manager:
        if (latest := manager.latest_step()) is not None:
            _read_best(manager, build)  # a damaged one is told by what can make it again
            state, history = _restore(manager, latest, state)
        samples = steps * recipe.batch_size
        with tqdm(
            total=recipe.epochs * samples,
            initial=len(history) * samples,
            desc="train",
            unit="img",
            unit_scale=True,
        ) as progress:
            for epoch in range(len(history) + 1, recipe.epochs + 1):
                order = np.random.default_rng([seed, epoch]).permutation(len(train))[:samples]
                state, metrics = run_epoch(
                    state,
                    data,
                    order.reshape(steps, recipe.batch_size),
                    jax.random.split(jax.random.fold_in(key, epoch), steps),
                    progress,
                )
                row = Epoch(epoch, *_mean(metrics, samples), *validate(state))
                if not math.isfinite(row.train_loss):
                    raise FloatingPointError(
                        f"training diverged in epoch {epoch}: the loss is not finite; "
                        "lower the learning rate or lengthen the warm-up"
                    )
                history.append(row)
                _save(manager, state, history)
                progress.set_postfix(
                    epoch=epoch, validation_accuracy=f"{row.validation_accuracy:.4f}"
                )
    return history


def keep_trained(model: nnx.Module, directory: Path) -> None:
    """Leaves a model that was trained elsewhere where `restore_best` finds it.

    Args:
      model: of a structure and with weights in float32 as `restore_best` is to return.
      directory: where the orbax checkpoint goes; of this model alone. One that is there stays.
    """
    with ocp.CheckpointManager(directory.absolute()) as manager:  # there is no metric to track
        if manager.latest_step() is None:
            weights = nnx.to_pure_dict(nnx.state(model))
            manager.save(
                _TRAINED_ELSEWHERE,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(weights),
                    seals=ocp.args.JsonSave({"model": seal(hash_tree(weights))}),
                ),
            )


def restore_best(build: BuildModel, directory: Path) -> nnx.Module:
    """The model of the best validation epoch, or the one that `keep_trained` left, in float32 and
    evaluation mode.

    Args:
      build: as for `fit`; only its structure is used.
      directory: as for `fit` or `keep_trained`.

    Raises:
      FileNotFoundError: `directory` holds no checkpoint.
      ValueError: the checkpoint is damaged, or the best epoch's is gone.
    """
    with _manager(directory) as manager:
        return _read_best(manager, build)


def _read_best(manager: ocp.CheckpointManager, build: BuildModel) -> nnx.Module:
    graphdef, state = nnx.split(_evaluation_model(build))
    best = _best(manager)
    # Onto this process's device, whichever the checkpoint was written from.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        nnx.to_pure_dict(state),
    )
    try:
        saved = _read(manager, best, model=ocp.args.StandardRestore(target))
    except ValueError as error:
        if best == manager.latest_step():
            raise
        # Without it, training would go on from the latest and never have this epoch again.
        raise ValueError(
            f"the best epoch's checkpoint {manager.directory / str(best)} is damaged or of another "
            f"version: put a whole one in its place, or delete {manager.directory} and run again"
        ) from error
    nnx.replace_by_pure_dict(state, saved["model"])
    return nnx.merge(graphdef, state)


def _best(manager: ocp.CheckpointManager) -> int:
    """The epoch to restore, by the newest checkpoint's history: Orbax's own metrics have no seal.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the newest is damaged, or the best is gone.
    """
    latest = manager.latest_step()
    if latest is None:
        raise FileNotFoundError(f"no checkpoint in {manager.directory}; train the model first")
    if latest == _TRAINED_ELSEWHERE:
        return latest
    history = _read(manager, latest, history=ocp.args.JsonRestore())["history"]
    accuracy = max(row["validation_accuracy"] for row in history)
    best = [row["epoch"] for row in history if row["validation_accuracy"] == accuracy]
    kept = [epoch for epoch in best if epoch in manager.all_steps()]  # one of equals, or two
    if not kept:
        raise ValueError(
            f"the best epoch's checkpoint {manager.directory / str(best[-1])} is gone: put it "
            f"back, or delete {manager.directory} and run again"
        )
    return kept[-1]


def _evaluation_model(build: BuildModel) -> nnx.Module:
    """The float32 model in evaluation mode, shapes without values."""
    model = nnx.eval_shape(lambda: build(jnp.float32))
    model.eval()
    return model


def _mean(metrics: list[_Metrics], count: int) -> tuple[float, float]:
    return (
        float(sum(np.sum(m.loss, dtype=np.float64) for m in metrics)) / count,
        int(sum(np.sum(m.correct) for m in metrics)) / count,
    )


def _dispatched_epoch(step: Callable[..., tuple[_State, _Metrics]]) -> Callable[..., Any]:
    compiled = jax.jit(step, donate_argnums=0)

    def run(state: _State, data: Any, order: np.ndarray, keys: Array, progress: tqdm) -> Any:
        metrics = []
        for positions, key in zip(order, keys, strict=True):
            state, metric = compiled(state, data, positions, key)
            metrics.append(metric)
            progress.update(len(positions))
        return state, jax.device_get(metrics)

    return run


def _scanned_epoch(step: Callable[..., tuple[_State, _Metrics]]) -> Callable[..., Any]:
    @partial(jax.jit, donate_argnums=0)
    def scan(state: _State, data: Any, order: Array, keys: Array) -> tuple[_State, _Metrics]:
        return jax.lax.scan(lambda s, batch: step(s, data, *batch), state, (order, keys))

    def run(state: _State, data: Any, order: np.ndarray, keys: Array, progress: tqdm) -> Any:
        state, metrics = scan(state, data, order, keys)
        metrics = [jax.device_get(metrics)]
        progress.update(order.size)
        return state, metrics

    return run


def _save(manager: ocp.CheckpointManager, state: _State, history: list[Epoch]) -> None:
    content = {
        "model": nnx.to_pure_dict(nnx.merge_state(state.params, state.rest)),
        "optimizer": state.optimizer,
        "history": [row._asdict() for row in history],
    }
    manager.save(
        len(history),
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(content["model"]),
            optimizer=ocp.args.StandardSave(content["optimizer"]),
            history=ocp.args.JsonSave(content["history"]),
            seals=ocp.args.JsonSave(
                {name: seal(hash_tree(part)) for name, part in content.items()}
            ),
        ),
        metrics=history[-1]._asdict(),
    )


def _restore(
    manager: ocp.CheckpointManager, epoch: int, state: _State
) -> tuple[_State, list[Epoch]]:
    model = nnx.merge_state(state.params, state.rest)
    saved = _read(
        manager,
        epoch,
        model=ocp.args.StandardRestore(nnx.to_pure_dict(model)),
        optimizer=ocp.args.StandardRestore(state.optimizer),
        history=ocp.args.JsonRestore(),
    )
    nnx.replace_by_pure_dict(model, saved["model"])
    params, rest = nnx.split_state(model, nnx.Param, ...)
    return (
        _State(params, rest, saved["optimizer"]),
        [Epoch(**row) for row in saved["history"]],
    )


def _read(manager: ocp.CheckpointManager, step: int, **parts: Any) -> dict[str, Any]:
    """Parts of a checkpoint, compared with their seals.

    Raises:
      ValueError: it is damaged, or of another version.
    """
    path = manager.directory / str(step)
    try:
        if "model" in parts:
            _require_shapes(Path(path / "model"), parts["model"].item)
        saved = manager.restore(
            step, args=ocp.args.Composite(**parts, seals=ocp.args.JsonRestore())
        )
        seals = dict(saved["seals"] or {})
    except (PermissionError, MemoryError, jax.errors.JaxRuntimeError):
        raise  # nothing is wrong with the file
    except Exception as error:  # from KeyError to tensorstore's own, for a damaged file
        raise ValueError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {error}): it is "
            "damaged or of another version; delete it and run again"
        ) from error
    for name in parts:
        check_seal(path, seals.get(name), partial(hash_tree, saved[name]))
    return {name: saved[name] for name in parts}


def _require_shapes(path: Path, wanted: Any) -> None:
    """A ValueError where weights are stored for another network.

    Orbax would say so too, but leaves tasks behind that complain later, on another thread.
    """
    stored = _shapes(ocp.StandardCheckpointHandler().metadata(path).tree)
    for name, shape in _shapes(wanted).items():
        if stored.get(name) != shape:
            raise ValueError(f"{name} is stored as {stored.get(name)}, the network has {shape}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """By path; Orbax stores the places in a list as strings."""
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(leaf.shape)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
