"""Training on the 8x8 digits: learning, resuming, the best checkpoint, and the pieces of a step."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcurv.data import Arrays, Normalisation, load, read
from jaxcurv.models.resnet import BasicBlock, ResNet
from jaxcurv.progress import Progress
from jaxcurv.training import loop, steps
from jaxcurv.training.checkpoints import (
    Epoch,
    keep_trained,
    kept_epochs,
    restore_best,
    restore_epoch,
)
from jaxcurv.training.loop import fit
from jaxcurv.training.recipe import Recipe
from jaxcurv.training.steps import augment
from tests.refusals import refused

RECIPE = Recipe(
    epochs=5, batch_size=32, learning_rate=0.2, warmup_epochs=1.0, crop_padding=1, flip=False
)
STEPS = 30
TRAIN, VALIDATION = STEPS * 32 + 5, 150  # neither is a multiple of the batch size


@nnx.jit(static_argnames="dtype")
def build(dtype: Any) -> nnx.Module:
    """A ResNet of one block."""
    return ResNet(
        BasicBlock,
        (1, 0, 0, 0),
        num_classes=10,
        stem="cifar",
        width=16,
        in_channels=1,
        dtype=dtype,
        rngs=nnx.Rngs(0),
    )


class Linear(nnx.Module):
    """Softmax regression: what concerns no convolution need not compile one."""

    def __init__(self, dtype: Any):
        self.fc = nnx.Linear(64, 10, dtype=dtype, rngs=nnx.Rngs(0))

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.fc(images.reshape(len(images), -1))


class Digits(NamedTuple):
    train: Arrays
    validation: Arrays
    normalisation: Normalisation


@pytest.fixture(scope="module")
def digits() -> Digits:
    pytest.importorskip("sklearn")
    every = load("digits").train
    train = read(every, range(TRAIN))
    validation = read(every, range(TRAIN, TRAIN + VALIDATION))
    return Digits(train, validation, Normalisation.of(train.images))


def weights(model: nnx.Module) -> dict[tuple[Any, ...], np.ndarray]:
    return {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(model))}


def accuracy_and_loss(model: nnx.Module, data: Arrays, normalisation: Normalisation) -> tuple:
    logits = np.asarray(nnx.jit(lambda m, x: m(x))(model, normalisation.apply(data.images)))
    wide = logits.astype(np.float64)
    own = wide[np.arange(len(data)), data.labels]
    losses = np.log(np.exp(wide - own[:, None]).sum(axis=1))
    return np.mean(logits.argmax(1) == data.labels), losses.mean()


# --- one undisturbed run and one that was interrupted


class Run(NamedTuple):
    history: list[Epoch]
    directory: Path


@pytest.fixture(scope="module")
def undisturbed(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("undisturbed")
    return Run(fit(build, *digits, RECIPE, seed=1, directory=directory), directory)


def test_a_resnet_learns_the_digits(undisturbed: Run) -> None:
    history = undisturbed.history
    assert [row.epoch for row in history] == [1, 2, 3, 4, 5]
    assert history[-1].validation_accuracy > 0.6  # chance is 0.1
    assert history[-1].train_accuracy > 0.7
    assert history[-1].train_loss < history[0].train_loss / 2
    assert all(row.train_accuracy * STEPS * 32 % 1 == pytest.approx(0) for row in history)


def test_the_last_row_is_that_of_the_restored_model(undisturbed: Run, digits: Digits) -> None:
    model = restore_best(build, undisturbed.directory)
    assert {w.dtype for w in weights(model).values()} == {np.dtype("float32")}
    accuracy, loss = accuracy_and_loss(model, digits.validation, digits.normalisation)
    best = max(undisturbed.history, key=lambda row: row.validation_accuracy)
    assert accuracy == pytest.approx(best.validation_accuracy)
    assert loss == pytest.approx(best.validation_loss, rel=1e-4)


def test_an_interrupted_run_goes_on_bit_for_bit(
    undisturbed: Run, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    kept: list[int] = []

    def interrupting(shown: Progress, count: int = 1, *, found: bool = False) -> None:
        """Ctrl-C in the middle of the third epoch, once."""
        (kept if found else trained).append(count)
        if not found and len(trained) == 2 * STEPS + STEPS // 2:
            raise KeyboardInterrupt
        update(shown, count, found=found)

    update = Progress.update
    monkeypatch.setattr(Progress, "update", interrupting)
    with pytest.raises(KeyboardInterrupt):
        fit(build, *digits, RECIPE, seed=1, directory=tmp_path)
    before = len(trained)

    def without_values(dtype: Any) -> nnx.Module:
        """The weights are there: none is drawn."""
        model = build(dtype)
        assert all(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(nnx.state(model)))
        return model

    history = fit(without_values, *digits, RECIPE, seed=1, directory=tmp_path)
    assert len(trained) - before == 3 * STEPS  # epochs 3 to 5 only
    assert max(kept) == sum(trained[: 2 * STEPS])  # the first two count at once
    assert history == undisturbed.history
    resumed = weights(restore_best(build, tmp_path))
    for path, expected in weights(restore_best(build, undisturbed.directory)).items():
        np.testing.assert_array_equal(resumed[path], expected, err_msg=str(path))


# --- checkpoints, on softmax regression


def test_a_model_trained_elsewhere_is_restored_as_it_was_kept(tmp_path: Path) -> None:
    model = Linear(jnp.float32)
    model.fc.bias[...] = jnp.arange(10.0)
    keep_trained(model, tmp_path)
    keep_trained(Linear(jnp.float32), tmp_path)  # what is there stays
    restored = weights(restore_best(Linear, tmp_path))
    for path, expected in weights(model).items():
        np.testing.assert_array_equal(restored[path], expected)


def test_restore_best_is_not_the_last(digits: Digits, tmp_path: Path) -> None:
    """With random validation labels the accuracy goes up and down by chance."""
    labels = np.random.default_rng(2).integers(0, 10, VALIDATION).astype(np.int32)
    validation = Arrays(digits.validation.images, labels, digits.validation.indices)
    recipe = Recipe(epochs=6, batch_size=64, learning_rate=0.05, warmup_epochs=0.0)
    history = fit(
        Linear, digits.train, validation, digits.normalisation, recipe, seed=0, directory=tmp_path
    )
    accuracies = [row.validation_accuracy for row in history]
    best = history[int(np.argmax(accuracies))]
    assert accuracies.count(best.validation_accuracy) == 1
    assert best.epoch < recipe.epochs
    model = restore_best(Linear, tmp_path)
    accuracy, loss = accuracy_and_loss(model, validation, digits.normalisation)
    assert accuracy == pytest.approx(best.validation_accuracy)
    assert loss == pytest.approx(best.validation_loss, rel=1e-5)
    # A finished run is read back, not repeated.
    again = fit(
        Linear, digits.train, validation, digits.normalisation, recipe, seed=0, directory=tmp_path
    )
    assert again == history
    # Which epoch is the best is decided by what has a checksum, not by Orbax's metrics.
    metrics = tmp_path / str(recipe.epochs) / "metrics" / "metrics"
    promoted = json.loads(metrics.read_text()) | {"validation_accuracy": 1.0}
    metrics.write_text(json.dumps(promoted))
    for path, expected in weights(model).items():
        np.testing.assert_array_equal(weights(restore_best(Linear, tmp_path))[path], expected)
    metrics.write_text("{")
    with pytest.raises(ValueError, match=rf"metrics of a checkpoint in {tmp_path} are damaged"):
        restore_best(Linear, tmp_path)
    metrics.write_text(json.dumps(promoted))
    # Of another model's weights: what to do about it works.
    checksums, other = (
        tmp_path / f"{epoch}/checksums/metadata" for epoch in (best.epoch, recipe.epochs)
    )
    kept = checksums.read_bytes()
    shutil.copy(other, checksums)
    damaged = pytest.raises(ValueError, match=rf"/{best.epoch} is damaged .*put a whole one in")
    with damaged:
        restore_best(Linear, tmp_path)
    checksums.write_bytes(kept)
    restore_best(Linear, tmp_path)
    shutil.rmtree(tmp_path / str(best.epoch))
    gone = pytest.raises(ValueError, match=rf"/{best.epoch} is gone: put it back, or delete")
    with gone:
        restore_best(Linear, tmp_path)
    with gone:  # nor is such a run taken for a finished one
        fit(
            Linear, digits.train, validation, digits.normalisation, recipe,
            seed=0, directory=tmp_path,
        )  # fmt: skip


def test_epochs_are_kept_beside_the_best_and_the_newest(digits: Digits, tmp_path: Path) -> None:
    """Each as it was then, and the training is the same."""
    recipe = Recipe(epochs=7, batch_size=64, learning_rate=0.05, warmup_epochs=0.0)
    keeping = replace(recipe, keep_every=3)
    plain = fit(Linear, *digits, recipe, seed=0, directory=tmp_path / "plain")
    history = fit(Linear, *digits, keeping, seed=0, directory=tmp_path / "kept")
    assert history == plain
    kept, highest = kept_epochs(tmp_path / "kept"), max(row.validation_accuracy for row in history)
    best = {row.epoch for row in history if row.validation_accuracy == highest}
    assert kept == sorted(kept)
    assert {3, 6, 7} <= set(kept) <= {3, 6, 7} | best
    assert not {3, 6} <= set(kept_epochs(tmp_path / "plain"))
    for epoch in (3, 6, 7):
        model = restore_epoch(Linear, tmp_path / "kept", epoch)
        accuracy, loss = accuracy_and_loss(model, digits.validation, digits.normalisation)
        assert accuracy == pytest.approx(history[epoch - 1].validation_accuracy)
        assert loss == pytest.approx(history[epoch - 1].validation_loss, rel=1e-5)
    gone = min({1, 2, 4, 5} - best)
    with pytest.raises(FileNotFoundError, match=rf"no checkpoint of epoch {gone} in .*3, "):
        restore_epoch(Linear, tmp_path / "kept", gone)
    # Of another epoch's weights.
    spoiled = min({3, 6} - best)
    own, last = (tmp_path / f"kept/{epoch}/checksums/metadata" for epoch in (spoiled, 7))
    shutil.copy(last, own)
    cure = rf"put a whole one in its place, or delete .*/kept/{spoiled}: averages over epochs do"
    with pytest.raises(ValueError, match=rf"/{spoiled} is damaged .*{cure}"):
        restore_epoch(Linear, tmp_path / "kept", spoiled)
    # What to do about it works.
    shutil.rmtree(tmp_path / f"kept/{spoiled}")
    assert fit(Linear, *digits, keeping, seed=0, directory=tmp_path / "kept") == history
    assert kept_epochs(tmp_path / "kept") == [epoch for epoch in kept if epoch != spoiled]


def test_a_model_trained_elsewhere_has_no_epochs(tmp_path: Path) -> None:
    keep_trained(Linear(jnp.float32), tmp_path)
    assert kept_epochs(tmp_path) == []


def test_a_checkpoint_of_earlier_versions_is_read_and_compared(tmp_path: Path) -> None:
    model = Linear(jnp.float32)
    keep_trained(model, tmp_path)
    (tmp_path / "0" / "checksums").rename(tmp_path / "0" / "seals")
    path = tmp_path / "0" / "seals" / "metadata"
    earlier = path.read_text().replace('": "', '": "1:')
    assert '"1:' in earlier
    path.write_text(earlier)
    for place, expected in weights(model).items():
        np.testing.assert_array_equal(weights(restore_best(Linear, tmp_path))[place], expected)
    path.write_text(earlier.replace("1:", "1:0"))
    with pytest.raises(ValueError, match=r"/0 is damaged"):
        restore_best(Linear, tmp_path)


def test_restore_best_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*; train the model first"):
        restore_best(Linear, tmp_path)


def test_the_scanned_epoch_of_accelerators_trains_alike(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=0.05, warmup_epochs=1.0, crop_padding=1)
    dispatched = fit(Linear, *digits, recipe, seed=3, directory=tmp_path / "dispatched")
    monkeypatch.setattr(loop, "dispatched_epoch", steps.scanned_epoch)
    scanned = fit(Linear, *digits, recipe, seed=3, directory=tmp_path / "scanned")
    np.testing.assert_allclose(scanned, dispatched, rtol=1e-5)
    other = fit(Linear, *digits, recipe, seed=4, directory=tmp_path / "other")
    assert other[0].train_loss != pytest.approx(scanned[0].train_loss, rel=1e-4)


# --- perturbed and clipped weights, on softmax regression

PLAIN = Recipe(
    epochs=2, batch_size=64, learning_rate=0.05, warmup_epochs=0.0, crop_padding=0, flip=False
)


def doubled_and_shifted(params: nnx.State, key: jax.Array) -> nnx.State:
    """Something that depends on the parameters and on the key."""
    return jax.tree.map(lambda w: 2 * w + jax.random.normal(key, w.shape), params)


def test_perturbing_by_nothing_trains_as_without(digits: Digits, tmp_path: Path) -> None:
    plain = fit(Linear, *digits, PLAIN, seed=3, directory=tmp_path / "plain")
    same = fit(
        Linear, *digits, PLAIN, seed=3, directory=tmp_path / "same",
        perturb=lambda params, key: params,
    )  # fmt: skip
    assert same == plain
    expected = weights(restore_best(Linear, tmp_path / "plain"))
    for path, found in weights(restore_best(Linear, tmp_path / "same")).items():
        np.testing.assert_array_equal(found, expected[path], err_msg=str(path))


@pytest.mark.parametrize("clip_sigma", [None, 1.5])
def test_a_step_applies_the_perturbed_gradient_to_the_exact_weights(
    digits: Digits, clip_sigma: float | None
) -> None:
    """Softmax regression: the gradient at weights V is x^T (softmax(x V + c) - onehot) / n."""
    recipe = Recipe(
        epochs=1, batch_size=32, learning_rate=0.5, warmup_epochs=0.0, momentum=0.0,
        weight_decay=0.01, crop_padding=0, flip=False, clip_sigma=clip_sigma,
    )  # fmt: skip
    model = Linear(jnp.float32)
    model.fc.bias[...] = jnp.arange(10.0) / 10
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = steps.make_optimizer(recipe, steps=1, warmup=0)
    state = steps.State(params, rest, optimizer.init(params))
    data = jnp.asarray(digits.train.images), jnp.asarray(digits.train.labels)
    positions, key = jnp.arange(7, 39), jax.random.key(5)
    after, metrics = jax.jit(
        lambda *given: steps.train_step(
            graphdef, optimizer, recipe, digits.normalisation, *given, perturb=doubled_and_shifted
        )
    )(state, data, positions, key)
    own = jax.random.fold_in(key, 2)
    assert not any(
        (jax.random.key_data(own) == jax.random.key_data(one)).all()
        for one in jax.random.split(key)  # of the augmentation
    )
    exact = {
        "kernel": np.float64(model.fc.kernel[...]),
        "bias": np.float64(model.fc.bias[...]),
    }
    noisy = {
        name: 2 * value + np.float64(jax.random.normal(own, value.shape))
        for name, value in exact.items()
    }
    batch = digits.train.take(np.arange(7, 39))
    inputs = np.float64(digits.normalisation.apply(batch.images)).reshape(32, -1)
    logits = inputs @ noisy["kernel"] + noisy["bias"]
    softmax = np.exp(logits - logits.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    slope = (softmax - np.eye(10)[batch.labels]) / 32
    wanted = {
        "kernel": exact["kernel"] - 0.5 * (inputs.T @ slope + 0.01 * exact["kernel"]),
        "bias": exact["bias"] - 0.5 * (slope.sum(0) + 0.01 * exact["bias"]),
    }
    if clip_sigma is not None:
        bound = clip_sigma * wanted["kernel"].std(ddof=1)
        assert (abs(wanted["kernel"]) > bound).sum() > 10
        wanted["kernel"] = wanted["kernel"].clip(-bound, bound)
    for name, value in wanted.items():
        np.testing.assert_allclose(after.params["fc"][name][...], value, rtol=1e-4, atol=1e-6)
    assert metrics.correct == (logits.argmax(1) == batch.labels).sum()


def test_perturbed_training_goes_on_and_repeats_bit_for_bit(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(directory: Path, seed: int = 3) -> list[Epoch]:
        return fit(
            Linear, *digits, PLAIN, seed=seed, directory=directory, perturb=doubled_and_shifted
        )

    once = trained(tmp_path / "once")
    assert trained(tmp_path / "again") == once
    assert trained(tmp_path / "other", seed=4) != once
    done = 0

    def interrupting(shown: Progress, count: int = 1, *, found: bool = False) -> None:
        """Ctrl-C in the second epoch."""
        nonlocal done
        done += not found
        if done == TRAIN // 64 + 3:
            raise KeyboardInterrupt
        update(shown, count, found=found)

    update = Progress.update
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupting)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "interrupted")
    assert trained(tmp_path / "interrupted") == once
    expected = weights(restore_best(Linear, tmp_path / "once"))
    for path, found in weights(restore_best(Linear, tmp_path / "interrupted")).items():
        np.testing.assert_array_equal(found, expected[path], err_msg=str(path))


def test_validation_is_of_the_exact_weights(digits: Digits, tmp_path: Path) -> None:
    """Every step computes with weights of 0, which know nothing; the exact ones are validated."""
    zero = lambda params, key: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    history = fit(Linear, *digits, PLAIN, seed=0, directory=tmp_path, perturb=zero)
    assert history[0].train_loss == pytest.approx(np.log(10), rel=1e-5)
    assert history[-1].train_loss == pytest.approx(np.log(10), rel=1e-5)
    assert history[-1].validation_accuracy > 0.5
    accuracy, _ = accuracy_and_loss(
        restore_best(Linear, tmp_path), digits.validation, digits.normalisation
    )
    assert accuracy == max(row.validation_accuracy for row in history)


def test_clipping_leaves_biases_and_single_weights() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(1.0, 1.0, (3, 3, 2, 5)).astype(np.float32)
    params = {"kernel": kernel, "one": np.full((1, 1), 7, np.float32), "bias": kernel[0, 0, 0]}
    clipped = steps.clip_weights(jax.tree.map(jnp.asarray, params), 0.5)
    bound = 0.5 * np.std(np.float64(kernel), ddof=1)
    np.testing.assert_allclose(clipped["kernel"], kernel.clip(-bound, bound), rtol=1e-6)
    assert (abs(kernel) < bound).any()
    for name in ("one", "bias"):
        np.testing.assert_array_equal(clipped[name], params[name])


def test_a_diverging_run_says_so(digits: Digits, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=1e30, warmup_epochs=0.0)
    with pytest.raises(FloatingPointError, match=r"diverged in epoch 1:.*lower the learning rate"):
        fit(Linear, *digits, recipe, seed=0, directory=tmp_path)


@pytest.mark.parametrize(("train", "validation"), [(31, 10), (100, 0)])
def test_too_few_images_are_refused(
    digits: Digits, tmp_path: Path, train: int, validation: int
) -> None:
    few = digits.train.take(np.arange(train)), digits.validation.take(np.arange(validation))
    message = f"{train} training and {validation} validation images are too few for batches of 32"
    with pytest.raises(ValueError, match=message):
        fit(Linear, *few, digits.normalisation, RECIPE, seed=0, directory=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "at least 1 epoch.*epochs=0"),
        ({"batch_size": 1}, "batch of at least 2.*batch_size=1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive; got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive; got nan"),
        ({"warmup_epochs": -0.5}, "warmup_epochs must be finite and not negative; got -0.5"),
        ({"warmup_epochs": float("inf")}, "warmup_epochs must be finite and not negative"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\).*got 1"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and not negative"),
        ({"crop_padding": -1}, "crop_padding must not be negative"),
        ({"clip_sigma": 0.0}, "clip_sigma must be positive, or none for no clipping; got 0.0"),
        ({"clip_sigma": -2.5}, "clip_sigma must be positive.*got -2.5"),
        ({"clip_sigma": float("nan")}, "clip_sigma must be positive.*got nan"),
        ({"keep_every": 0}, "keep_every must be at least 1"),
        ({"keep_every": 2.5}, "keep_every must be a whole number; got 2.5"),
    ],
)
def test_impossible_recipes_are_refused(settings: dict[str, Any], message: str) -> None:
    with refused(message):
        Recipe(**settings)


# --- the CPU's convolution


@pytest.mark.parametrize(("batch", "stride", "size"), [(37, 1, 3), (5, 2, 1)])
def test_the_convolution_has_jax_s_own_gradients(batch: int, stride: int, size: int) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(size, size, 3, 4)).astype(np.float32)
    images = rng.normal(size=(batch, 9, 8, 3)).astype(np.float32)

    def run(convolution: Callable[..., jax.Array]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        def loss(images: jax.Array, kernel: jax.Array) -> jax.Array:
            layer = nnx.Conv(
                3,
                4,
                (size, size),
                strides=stride,
                padding=size // 2,
                use_bias=False,
                kernel_init=lambda *_: kernel,
                conv_general_dilated=convolution,
                rngs=nnx.Rngs(0),
            )
            return jnp.sum(jnp.sin(layer(images)))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(images, kernel)

    (value, gradients), (plain, expected) = (
        run(convolution) for convolution in (steps.convolve_in_pieces, jax.lax.conv_general_dilated)
    )
    assert value == plain
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert np.linalg.norm(gradient - wanted) < 1e-5 * np.linalg.norm(wanted)
        assert np.linalg.norm(wanted) > 1


# --- augmentation

augmented = jax.jit(augment, static_argnames=("padding", "flip"))


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (0, False)])
def test_augmented_images_are_crops_of_the_padded_and_perhaps_mirrored(
    padding: int, flip: bool
) -> None:
    image = np.arange(1, 4 * 5 * 2 + 1, dtype=np.uint8).reshape(4, 5, 2)  # no two pixels alike
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    corners = range(2 * padding + 1)
    crops = [padded[i : i + 4, j : j + 5] for i, j in product(corners, corners)]
    views = [view for crop in crops for view in ((crop, crop[:, ::-1]) if flip else (crop,))]
    batch = jnp.asarray(np.stack([image] * 600))
    result = np.asarray(augmented(jax.random.key(0), batch, padding=padding, flip=flip))
    assert result.shape == (600, 4, 5, 2)
    assert result.dtype == np.uint8
    equal = np.stack([(result == view).all(axis=(1, 2, 3)) for view in views])
    assert (equal.sum(axis=0) == 1).all()
    # Every view is drawn, and none much more often than the others: 5 standard deviations.
    assert abs(equal.mean(axis=1) - 1 / len(views)).max() < 5 / np.sqrt(600 * len(views))
    assert equal.any(axis=1).all()


def test_augmentation_follows_its_key() -> None:
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.integers(0, 256, (600, 4, 5, 2), dtype=np.uint8))
    one, same, other = (
        np.asarray(augmented(jax.random.key(seed), batch, padding=2, flip=True))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.mean((one == other).all(axis=(1, 2, 3))) < 0.1


@pytest.mark.parametrize(
    ("epochs", "warmup", "steps"),
    [(10, 2.0, 14), (3, 2.9, 20), (2, 2.0, 7), (2, 5.0, 7), (1, 5.0, 4)],
)
def test_a_short_training_warms_up_over_its_first_half(
    epochs: int, warmup: float, steps: int
) -> None:
    assert Recipe(epochs=epochs, warmup_epochs=warmup).warmup_steps(7) == steps
