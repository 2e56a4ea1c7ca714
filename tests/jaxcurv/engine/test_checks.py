"""What may be scored: kinds of model, what is refused, and what is compiled anew."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcurv import (
    Adaptive,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    input_curvature,
    score_dataset,
)
from jaxcurv.curvature import inspect
from jaxcurv.data.reading import Batch
from jaxcurv.engine.inspection import check_same_in_batch, losses_by_eight
from jaxcurv.engine.losses import cross_entropy
from jaxcurv.engine.model import ROUNDING, Problem
from jaxcurv.estimators import Estimator, Published
from jaxcurv.models.resnet import BasicBlock, ResNet
from tests.oracles import KEY

RNG = np.random.default_rng
WEIGHTS = RNG(9).normal(size=(4, 3)).astype(np.float32)
IMAGES = RNG(10).normal(size=(6, 4)).astype(np.float32)
LABELS = RNG(11).integers(0, 3, 6)
INDICES = np.arange(6) + 10


def linear(weights: Any, images: jax.Array) -> jax.Array:
    return images @ weights


def score(model: Any, params: Any = None, **changed: Any) -> np.ndarray:
    batch: dict[str, Any] = {
        "images": IMAGES,
        "labels": LABELS,
        "indices": INDICES,
        "key": KEY,
    } | changed
    return input_curvature(model, params=params, **batch).score


# --- kinds of model


class Perceptron(nnx.Module):
    """Linear, BatchNorm, ReLU, Dropout, Linear on `[batch, 4]`."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(4, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(jax.nn.relu(self.norm(self.hidden(x)))))


class LinenPerceptron(flax.linen.Module):
    """The same in Linen."""

    train: bool = False

    @flax.linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = flax.linen.Dense(64, name="hidden")(x)
        x = flax.linen.BatchNorm(not self.train, name="norm")(x)
        x = flax.linen.Dropout(0.5, deterministic=not self.train)(jax.nn.relu(x))
        return flax.linen.Dense(3, name="out")(x)


@pytest.fixture(scope="module")
def initial() -> Perceptron:
    return nnx.jit(Perceptron)()


@pytest.fixture
def perceptron(initial: Perceptron) -> Perceptron:
    model = nnx.clone(initial)
    model.eval()
    return model


def linen_variables(model: Perceptron) -> dict[str, Any]:
    """The weights of the NNX module under Linen's names."""
    layers = {
        name: {key: layer.get_value() for key, layer in vars(getattr(model, name)).items()
               if isinstance(layer, nnx.Param)}
        for name in ("hidden", "norm", "out")
    }  # fmt: skip
    norm = model.norm
    return {
        "params": layers,
        "batch_stats": {"norm": {"mean": norm.mean.get_value(), "var": norm.var.get_value()}},
    }


@jax.jit
def apply_linen(variables: Any, images: jax.Array) -> jax.Array:
    return LinenPerceptron().apply(variables, images)


def test_every_kind_of_model_gives_the_same_scores(perceptron: Perceptron) -> None:
    as_module = score(perceptron)
    assert np.all(as_module > 0)
    in_linen = score(apply_linen, linen_variables(perceptron))
    np.testing.assert_allclose(in_linen, as_module, rtol=1e-3)
    # The weights are constants of the compiled program here: other roundings are allowed.
    closed = score(lambda x: linear(WEIGHTS, x))
    np.testing.assert_allclose(closed, score(linear, WEIGHTS), rtol=1e-3)


def test_new_weights_of_a_module_change_its_scores(perceptron: Perceptron) -> None:
    before = score(perceptron)
    perceptron.out.kernel[...] *= 2
    changed = score(perceptron)
    assert np.all(changed != before)
    perceptron.out.kernel[...] /= 2
    np.testing.assert_array_equal(score(perceptron), before)


def test_params_and_a_module_are_refused(perceptron: Perceptron) -> None:
    with pytest.raises(ValueError, match="carries its own weights: leave params out"):
        score(perceptron, {})


# --- what is compiled, and in which precision


@pytest.mark.parametrize(
    "estimator",
    [
        FiniteDifference(),
        Published(128),
        HessianVector(),
        HessianTrace(step=1e-3),
        GaussNewton(),
        Adaptive(FiniteDifference(probes=5), 0.2, 25),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_second_checkpoint_compiles_nothing(
    estimator: Estimator, caplog: pytest.LogCaptureFixture
) -> None:
    first = score(linear, WEIGHTS, estimator=estimator)
    other = {"images": IMAGES[::-1], "labels": LABELS[::-1]}
    caplog.clear()
    with jax.log_compiles():
        second = score(linear, 2 * WEIGHTS, estimator=estimator, **other)
    assert [record.message for record in caplog.records if "Compiling" in record.message] == []
    assert np.all(first != second)


def test_the_checks_compile_a_program_for_the_model_and_one_for_the_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def model(weights: jax.Array, images: jax.Array) -> jax.Array:
        hidden = jax.nn.softplus(jnp.tanh(linear(weights, images)) ** 2 - 1)
        return 3 * hidden / jnp.maximum(jnp.sum(hidden, axis=1, keepdims=True), 1e-6)

    batch = Batch(IMAGES[:, :3], LABELS, INDICES)  # of a shape that no other test compiles for
    weights = RNG(14).normal(size=(3, 17)).astype(np.float32)
    with jax.log_compiles():
        inspect(Problem(model, cross_entropy), weights, batch, {"score": FiniteDifference()})
    compiled = [record.message for record in caplog.records if "Compiling" in record.message]
    assert len(compiled) == 2, compiled


def test_compilations_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(1)
    assert any("Compiling" in record.message for record in caplog.records)


def test_precision_in_force_when_the_model_is_traced() -> None:
    traced: list[str | None] = []

    def model(weights: jax.Array, images: jax.Array) -> jax.Array:
        if len(images) == 6:  # the checks take two
            traced.append(jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]
        return linear(weights, images)

    for estimator, expected in (
        # For the base gradient, and once for all the probes.
        (FiniteDifference(), ["highest", "highest"]),
        # The linearised model is all that the probes see; the base gradient stays as exact.
        (HessianVector(precision="bfloat16"), ["bfloat16"]),
    ):
        traced.clear()
        first = score(model, WEIGHTS, estimator=estimator)
        assert traced == expected
        assert np.all(score(model, 2 * WEIGHTS, estimator=estimator) != first)
        assert traced == expected


# --- models that are refused


@pytest.mark.parametrize(
    ("layer", "how"), [("norm", "mixes the samples"), ("dropout", "changes its own state")]
)
def test_a_module_in_training_mode_is_refused(perceptron: Perceptron, layer: str, how: str) -> None:
    assert score(perceptron).shape == (6,)  # and not from what is compiled already
    getattr(perceptron, layer).train()
    with pytest.raises(ValueError, match=rf"{how}.*model\.eval\(\)"):
        score(perceptron)


class Setting(nnx.Module):
    """A linear layer behind another, which may set variables of its own when called."""

    def __init__(self, kind: str) -> None:
        rngs = nnx.Rngs(0)
        self.out = nnx.Linear(4, 3, rngs=rngs)
        self.rngs = rngs
        self.calls = nnx.Variable(jnp.zeros(()))
        self.kind = kind
        if kind == "RNN":
            self.rnn = nnx.RNN(nnx.GRUCell(1, 4, rngs=rngs), rngs=rngs)
        elif kind == "both ways":
            cells = [nnx.RNN(nnx.OptimizedLSTMCell(1, 2, rngs=rngs), rngs=rngs) for _ in range(2)]
            self.rnn = nnx.Bidirectional(*cells, rngs=rngs)
        elif kind == "WeightNorm":
            self.out = nnx.WeightNorm(self.out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind in ("RNN", "both ways"):
            x = self.rnn(x[:, :, None])[:, -1]
        if self.kind == "sown":
            self.sow(nnx.Intermediate, "seen", x)
        if self.kind == "shared noise":  # of every row, which no comparison of rows sees
            x = x * jax.random.bernoulli(self.rngs.dropout(), 0.5, x.shape[1:])
        if self.kind == "schedule":
            x = x / (1 + self.calls[...])
        self.calls[...] += 1
        return self.out(jnp.tanh(x))


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
@pytest.mark.parametrize("kind", ["counted", "sown", "RNN", "both ways", "WeightNorm"])
def test_a_module_that_sets_variables_without_a_use_is_scored(kind: str) -> None:
    module = Setting(kind)
    module.eval()
    held = jax.tree.map(np.asarray, nnx.state(module, nnx.Param))
    graph, state = nnx.split(module)
    found = score(module)
    assert np.all(found > 0)
    expected = score(lambda p, x: nnx.merge(graph, p, copy=True)(x), state)
    np.testing.assert_array_equal(found, expected)
    assert module.calls[...] == 0
    jax.tree.map(np.testing.assert_array_equal, held, nnx.state(module, nnx.Param))


@pytest.mark.parametrize("kind", ["shared noise", "schedule"])
def test_a_module_whose_calls_change_the_next_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"changes its own state.*model\.eval\(\)"):
        score(Setting(kind))


def test_a_resnet_in_training_mode_is_refused() -> None:
    model = nnx.eval_shape(
        lambda: ResNet(
            BasicBlock,
            (1, 0, 0, 0),
            num_classes=3,
            stem="cifar",
            width=2,
            in_channels=1,
            dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )
    )
    for _, variable in nnx.to_flat_state(nnx.state(model)):
        variable.set_value(jnp.ones(variable.shape))
    with pytest.raises(ValueError, match=r"BatchNorm in training mode.*model\.eval\(\)"):
        score(model, images=RNG(0).normal(size=(6, 8, 8, 1)).astype(np.float32))


def test_a_bound_linen_module_has_its_own_weights(perceptron: Perceptron) -> None:
    variables = linen_variables(perceptron)
    bound: Any = LinenPerceptron().bind(variables)
    np.testing.assert_array_equal(score(bound), score(LinenPerceptron().apply, variables))
    with pytest.raises(ValueError, match="a bound Linen module carries its own weights"):
        score(bound, variables)
    with pytest.raises(ValueError, match=r"method of a bound Linen module.* bound\.unbind"):
        score(bound.__call__)
    with pytest.raises(ValueError, match=r"no weights of its own.* model\.bind\(variables"):
        score(LinenPerceptron())


class Recurrent(nnx.Module):
    """Counts its calls in the random stream of its first state, in evaluation mode too."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        size = IMAGES[0].size
        self.rnn = nnx.RNN(nnx.GRUCell(size, 4, rngs=rngs))
        self.out = nnx.Linear(4, 3, rngs=rngs)
        self.eval()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.rnn(x.reshape(len(x), 1, -1))[:, -1])


def test_a_module_that_counts_in_its_functional_form_is_told_the_way() -> None:
    model = Recurrent()
    graphdef, state = nnx.split(model)
    with pytest.raises(ValueError, match=r"nnx\.merge\(graphdef, params, copy=True"):
        score(lambda params, x: nnx.merge(graphdef, params)(x), state)
    found = score(lambda params, x: nnx.merge(graphdef, params, copy=True)(x), state)
    np.testing.assert_array_equal(found, score(model))


def test_linen_batch_statistics_are_refused(perceptron: Perceptron) -> None:
    def train(variables: Any, images: jax.Array) -> jax.Array:
        model = LinenPerceptron(train=True)
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, mutable=["batch_stats"], rngs=rngs)[0]

    with pytest.raises(ValueError, match=r"mixes the samples.*BatchNorm in training mode"):
        score(train, linen_variables(perceptron))


def centred(logits: jax.Array) -> jax.Array:
    return logits - logits.mean(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (lambda x: linear(WEIGHTS, x) / jnp.std(x), 1),
        (lambda x: linear(WEIGHTS, x + x[::-1] ** 2), 6),
        (lambda x: centred(linear(WEIGHTS, x - x.mean(0))), 6),
        # No gradient where both images are the same one.
        (lambda x: linear(WEIGHTS, x + (x - x[::-1]) ** 2), 6),
        (lambda x: linear(WEIGHTS, x + (x - jnp.roll(x, len(x) // 2, axis=0)) ** 2), 6),
        (lambda x: linear(WEIGHTS, x + (x - jnp.roll(x, 1, axis=0)) ** 2), 6),
    ],
    ids=[
        *("std, one sample", "neighbour", "mean, logits with constant sum"),
        *("last row's difference", "middle row's difference", "next row's difference"),
    ],
)
def test_a_function_that_mixes_samples_is_refused(model: Callable, count: int) -> None:
    some = {"images": IMAGES[:count], "labels": LABELS[:count], "indices": INDICES[:count]}
    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        score(model, **some)


def strongest(hidden: jax.Array, axis: int | None) -> jax.Array:
    """The strongest third of an image's units, or, for None, of the batch's."""
    flat = hidden if axis is not None else hidden.reshape(1, -1)
    least = jax.lax.top_k(flat, flat.shape[1] // 3)[0][:, -1:]
    return jnp.where(hidden >= least, hidden, 0)


def dimmed(hidden: jax.Array, axis: int | None) -> jax.Array:
    return hidden * jnp.where(hidden.max(axis, keepdims=True) > 2, 0.5, 1)


def dimmed_by_darkness(hidden: jax.Array, axis: int | None) -> jax.Array:
    return hidden * jnp.where(hidden.sum(1, keepdims=True).min(axis, keepdims=True) < 0.1, 0.5, 1)


def dimmed_by_the_weakest(hidden: jax.Array, axis: int | None) -> jax.Array:
    least = jnp.abs(hidden).max(1, keepdims=True).min(axis, keepdims=True)
    return hidden * jnp.where(least > 40, 0.5, 1)


def standardised(hidden: jax.Array, axis: int | None) -> jax.Array:
    along = 0 if axis is None else axis
    mean, spread = hidden.mean(along, keepdims=True), hidden.std(along, keepdims=True) + 0.1
    return (hidden - jax.lax.stop_gradient(mean)) / jax.lax.stop_gradient(spread)


def in_steps(hidden: jax.Array, axis: int | None) -> jax.Array:
    """In seven steps of the largest, straight through."""
    step = jax.lax.stop_gradient(jnp.abs(hidden).max(axis, keepdims=True) / 7 + 1e-6)
    return hidden + jax.lax.stop_gradient(jnp.round(hidden / step) * step - hidden)


@pytest.mark.filterwarnings("ignore:a step of .* moves the logits")  # of what stops gradients
@pytest.mark.filterwarnings("ignore:the model jumps at")
@pytest.mark.parametrize("estimator", [FiniteDifference(probes=2), GaussNewton()], ids=repr)
@pytest.mark.parametrize(
    "hidden",
    [strongest, dimmed, dimmed_by_darkness, dimmed_by_the_weakest, standardised, in_steps],
)
def test_samples_that_mix_without_a_gradient_are_refused(
    hidden: Callable, estimator: Estimator
) -> None:
    first = RNG(14).normal(size=(4, 12)).astype(np.float32)
    second = RNG(15).normal(size=(12, 3)).astype(np.float32)

    def model(axis: int | None) -> Callable:
        return lambda x: hidden(jax.nn.relu(x @ first), axis) @ second

    with pytest.raises(ValueError, match=r"mixes the samples of a batch.*beside other images"):
        score(model(None), estimator=estimator)
    # Within each image it is a model of single samples.
    found = score(model(1), estimator=estimator)
    some = {"images": IMAGES[2:4], "labels": LABELS[2:4], "indices": INDICES[2:4]}
    expected = score(model(1), estimator=estimator, **some)
    np.testing.assert_allclose(found[2:4], expected, rtol=1e-4, atol=1e-6)


def experts(room: Callable[[int], int]) -> Callable:
    """A mixture of two experts, each with room for as many samples of a batch."""
    tables = RNG(16).normal(size=(2, 4, 3)).astype(np.float32)

    def model(images: jax.Array) -> jax.Array:
        first = (images[:, :1] > 0).astype(np.float32)
        chosen = jnp.concatenate([first, 1 - first], axis=1)
        taken = chosen * (jnp.cumsum(chosen, axis=0) <= room(len(images)))
        return 0.1 * linear(WEIGHTS, images) + jnp.einsum("be,bi,eio->bo", taken, images, tables)

    return model


@pytest.mark.filterwarnings("ignore:a step of 0.001 moves the logits otherwise")
def test_experts_without_room_for_a_batch_s_last_samples_are_refused() -> None:
    images = RNG(17).normal(size=(40, 4)).astype(np.float32)
    labels = RNG(18).integers(0, 3, 40)
    crowded, roomy = experts(lambda count: max(8, count // 3)), experts(lambda count: count)
    some = {"images": images, "labels": labels, "indices": np.arange(40) + 100}
    for run in (
        lambda model: score(model, estimator=GaussNewton(), **some),
        lambda model: score_dataset(model, (images, labels), batch_size=40)["curvature"],
    ):
        with pytest.raises(
            ValueError, match=r"at index 1?3\d .* among 40 samples than among eight"
        ):
            run(crowded)
        assert np.all(run(roomy) > 0)
    half = input_curvature(crowded, images[:8], labels[:8], estimator=GaussNewton()).score
    np.testing.assert_allclose(half, score(roomy, estimator=GaussNewton(), **some)[:8], rtol=1e-5)


def test_rounding_in_a_batch_of_another_size_is_no_mixing() -> None:
    """The model makes much of it: as much as of images that move by four units."""
    images = RNG(17).normal(size=(64, 4)).astype(np.float32)
    wide, back = (RNG(n).normal(size=(4, 64)).astype(np.float32) for n in (19, 20))
    batch = Batch(images, RNG(18).integers(0, 4, 64), np.arange(64))
    problem = Problem(lambda _, x: jnp.sin(1e5 * (x @ wide)) @ back.T, cross_entropy)
    problem = inspect(problem, None, batch, {"score": GaussNewton()}).problem
    losses, largest = losses_by_eight(problem, None, batch)
    shifted = batch._replace(images=images * (1 + 4 * np.finfo(np.float32).eps))
    rounded, _ = losses_by_eight(problem, None, shifted)
    assert np.abs(rounded - losses).max() > 10 * ROUNDING * largest
    check_same_in_batch(problem, None, batch, rounded)
    off = 20 * np.abs(rounded - losses).max() * (np.arange(64) == 63)
    with pytest.raises(ValueError, match="at index 63 another loss among 64 samples"):
        check_same_in_batch(problem, None, batch, losses + off.astype(np.float32))


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_rounding_to_a_coarser_type_is_no_mixing(narrow: Any) -> None:
    """By one unit of that type, in some of its hidden units."""
    images = RNG(17).normal(size=(64, 4)).astype(np.float32)
    wide, back = (RNG(n).normal(size=(4, 64)).astype(np.float32) for n in (19, 20))
    batch = Batch(images, RNG(18).integers(0, 4, 64), np.arange(64))

    def model(_: Any, x: jax.Array) -> jax.Array:
        hidden = x.astype(narrow) @ wide.astype(narrow)
        return (hidden @ back.T.astype(narrow)).astype(np.float32)

    problem = inspect(Problem(model, cross_entropy), None, batch, {"score": GaussNewton()}).problem
    losses, largest = losses_by_eight(problem, None, batch)
    rounded = losses * (1 + jnp.finfo(narrow).eps.astype(np.float32))
    assert np.abs(rounded - losses).max() > ROUNDING * largest
    check_same_in_batch(problem, None, batch, rounded)
    with pytest.raises(ValueError, match="at index 63 another loss among 64 samples"):
        check_same_in_batch(problem, None, batch, losses + largest * (np.arange(64) == 63))


def test_an_array_that_the_model_keeps_of_its_trace_is_told() -> None:
    @functools.lru_cache
    def scaled() -> jax.Array:
        return jnp.asarray(WEIGHTS) * 2

    with pytest.raises(ValueError, match=r"keeps an array .* functools\.lru_cache"):
        score(lambda images: images @ scaled())


def linen_dropout(variables: Any, images: jax.Array) -> jax.Array:
    """A mask from a fixed key: the same at every call, another for every row."""
    dropout = flax.linen.Dropout(0.5, deterministic=False)
    hidden = jax.nn.relu(images @ variables["first"])
    hidden = dropout.apply({}, hidden, rngs={"dropout": variables["key"]})
    return hidden @ variables["second"]


def dropout_variables(width: int, seed: int) -> dict[str, Any]:
    first, second = RNG(12).normal(size=(4, width)), RNG(13).normal(size=(width, 3))
    return {
        "first": first.astype(np.float32),
        "second": second.astype(np.float32),
        "key": jax.random.key(seed),
    }


CALLS = itertools.count()
"""Noise that no two calls have in common: two draws of a generator may lie close together."""


def noise(weights: Any, images: jax.Array) -> jax.Array:
    return linear(weights, images) + next(CALLS)


def masked(weights: Any, images: jax.Array) -> jax.Array:
    keep = jax.random.bernoulli(jax.random.key(3), 0.5, images.shape)
    return linear(weights, jnp.where(keep, images, 0))


def noise_of_the_host(weights: Any, images: jax.Array) -> jax.Array:
    """A draw for each call of the compiled program, too."""
    drawn = jax.ShapeDtypeStruct((), jnp.float32)
    return linear(weights, images) + jax.pure_callback(lambda: np.float32(next(CALLS)), drawn)


@pytest.mark.parametrize(
    ("model", "params"),
    [
        (noise, WEIGHTS),
        (noise_of_the_host, WEIGHTS),
        (masked, WEIGHTS),
    ],
    ids=["a draw for each call", "a draw on the host", "a mask for each row"],
)
def test_a_random_function_is_refused(model: Callable, params: Any) -> None:
    with pytest.raises(ValueError, match=r"different logits in two rows or two calls.*dropout"):
        score(model, params)


def test_dropout_of_a_few_units_is_refused() -> None:
    """The masks of this key's first two rows agree on the units that are active."""
    with pytest.raises(ValueError, match="different logits in two rows or two calls"):
        score(linen_dropout, dropout_variables(6, seed=8))


def test_probabilities_in_place_of_logits_are_told_of_with_a_cure_that_works() -> None:
    with pytest.warns(UserWarning, match="gives probabilities.* return its logarithm"):
        squashed = score(lambda x: jax.nn.softmax(x @ WEIGHTS))
    logarithms = score(lambda x: jnp.log(jax.nn.softmax(x @ WEIGHTS)))
    plain = score(linear, WEIGHTS)
    np.testing.assert_allclose(logarithms, plain, rtol=0.02)
    assert np.abs(squashed / plain - 1).max() > 0.5


@pytest.mark.filterwarnings("error")
def test_probabilities_for_a_loss_of_one_s_own_are_not_told_of() -> None:
    def of_probabilities(p: jax.Array, labels: jax.Array) -> jax.Array:
        return -jnp.log(jnp.take_along_axis(p, labels[:, None], axis=1)[:, 0])

    score(lambda x: jax.nn.softmax(x @ WEIGHTS), loss=of_probabilities)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda x: x[:, 0], r"\(2,\)"),
        (lambda x: x[:, :1], r"\(2, 1\)"),
        (lambda x: jnp.ones((5, 3)) * x.mean(), r"\(5, 3\)"),
        (lambda x: x[:, :, None], r"\(2, 4, 1\)"),
    ],
)
def test_logits_of_the_wrong_shape_are_refused(model: Callable, shape: str) -> None:
    with pytest.raises(ValueError, match=rf"logits must be \[batch, classes\].*got {shape}"):
        score(model)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_coarse_logits_are_refused(dtype: Any) -> None:
    name = jnp.dtype(dtype).name
    with pytest.raises(ValueError, match=rf"logits are {name}, too coarse.*float32"):
        score(lambda x: linear(WEIGHTS, x).astype(dtype))


def with_entry(array: np.ndarray, row: int, value: Any) -> np.ndarray:
    changed = array.copy()
    changed[row] = value
    return changed


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits are not finite.*check its weights"):
        score(linear, with_entry(WEIGHTS, 1, np.nan))


def test_a_division_of_0_by_0_is_named_where_logits_are_not_finite() -> None:
    black = with_entry(IMAGES, 0, 0.0)

    def normed(weights: jax.Array, x: jax.Array) -> jax.Array:
        lengths = jnp.linalg.norm(x.reshape(len(x), -1), axis=1)
        return linear(weights, x) / lengths[:, None]

    for images in (black, black[::-1]):  # among the first ones, or found later
        with pytest.raises(ValueError, match=r"logits are not finite.*0 / 0.*log\(0\)"):
            score(normed, WEIGHTS, images=images, estimator=HessianVector(1))


def test_the_sample_whose_logits_overflow_is_named() -> None:
    with pytest.raises(ValueError, match="not finite for 1 of 6 samples, the first at index 13"):
        score(linear, WEIGHTS, images=with_entry(IMAGES, 3, 3e38), estimator=HessianVector())


# --- batches that are refused


def uncalled(params: Any, images: jax.Array) -> jax.Array:
    raise AssertionError("the model ran before the batch was checked")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": LABELS.astype(np.float32)}, "labels must be integers; got float32"),
        ({"indices": INDICES / 2}, "indices must be integers; got float64"),
        ({"indices": with_entry(INDICES, 2, -1)}, r"indices must lie in .*got -1\.\."),
        ({"indices": with_entry(INDICES, 2, 2**32)}, r"indices must lie in .*\.\.4294967296"),
        ({"indices": with_entry(INDICES, 4, 11)}, "two samples share index 11; .*must differ"),
        ({"images": with_entry(IMAGES, 4, np.nan)}, "1 of 6 images.*NaN.*first at index 14"),
        ({"images": with_entry(IMAGES, 0, np.inf)}, "1 of 6 images.*infinity.*at index 10"),
        ({"images": IMAGES.astype(np.uint8)}, "images must be float32 or float64.*got uint8"),
        ({"images": IMAGES[:, 0]}, r"images must be \[batch, ...\].*got \(6,\)"),
        ({"labels": LABELS[:5]}, r"one label and one index each.*\(5,\)"),
        ({"indices": INDICES[:, None]}, r"one label and one index each.*\(6, 1\)"),
        (
            {"images": IMAGES[:0], "labels": LABELS[:0], "indices": INDICES[:0]},
            r"images must be \[batch, ...\].*batch >= 1.*got \(0, 4\)",
        ),
        # Near 2 float32 numbers are 2.4e-7 apart, near 2,000 a thousand times that.
        (
            {"estimator": FiniteDifference(step=1e-7)},
            "step 1e-07 is too small: float32 numbers near the largest pixel.*take at least",
        ),
        (
            {"images": 1000 * IMAGES, "estimator": HessianTrace(step=1e-4)},
            "step 0.0001 is too small.*or float64 images with jax_enable_x64",
        ),
        (
            {"images": 1000.0 * IMAGES, "estimator": Adaptive(Published(8, 1e-4))},
            "step 0.0001 is too small: float32 numbers",
        ),
        (
            {"images": IMAGES.astype(np.float64), "estimator": FiniteDifference(step=1e-7)},
            "step 1e-07 is too small: float32 numbers",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_batch_that_cannot_be_scored_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(uncalled, WEIGHTS, **changed)


@pytest.mark.parametrize(
    ("label", "message"),
    [(3, r"labels must lie in \[0, 3\).*\.\.3$"), (-1, r"labels must lie in \[0, 3\).*got -1\.\.")],
)
def test_labels_without_a_logit_are_refused(label: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(linear, WEIGHTS, labels=with_entry(LABELS, 0, label))


def through(dtype: Any) -> Callable:
    return lambda hidden: hidden.astype(dtype).astype(jnp.float32)


@pytest.mark.parametrize(
    ("narrowed", "how"),
    [
        (through(jnp.bfloat16), "computes in bfloat16"),
        (through(jnp.float16), "computes in float16"),
        (through(jnp.float8_e4m3fn), "computes in float8_e4m3fn"),
        (through(jnp.float8_e5m2), "computes in float8_e5m2"),
        (through(jnp.float8_e4m3b11fnuz), "computes in float8_e4m3b11fnuz"),
        (lambda h: jax.lax.reduce_precision(h, 5, 10), "10 bits of the mantissa"),
        (jax.checkpoint(lambda h: jax.lax.reduce_precision(h, 8, 7)), "7 bits of the mantissa"),
        (lambda h: jax.lax.reduce_precision(h, 8, 22), "22 bits of the mantissa"),
    ],
)
def test_a_model_that_computes_in_fewer_bits_is_refused_for_a_difference(
    narrowed: Callable, how: str
) -> None:
    @jax.jit
    def model(weights: jax.Array, images: jax.Array) -> jax.Array:
        return jnp.tanh(narrowed(images @ weights))

    with pytest.raises(ValueError, match=rf"{how}.*dtype=float32.*HessianVector"):
        score(model, WEIGHTS)
    with pytest.raises(ValueError, match=how):
        score(model, WEIGHTS, estimator=Adaptive(FiniteDifference(probes=5), tolerance=0.1))
    assert np.all(score(model, WEIGHTS, estimator=GaussNewton()) > 0)


def test_a_model_whose_precision_is_that_of_float32_is_scored() -> None:
    def model(weights: jax.Array, images: jax.Array) -> jax.Array:
        return jnp.tanh(jax.lax.reduce_precision(images @ weights, 8, 23))

    expected = score(lambda weights, images: jnp.tanh(images @ weights), WEIGHTS)
    np.testing.assert_allclose(score(model, WEIGHTS), expected, rtol=1e-3)


@jax.jit
def directional(weights: jax.Array, images: jax.Array) -> jax.Array:
    """A model of the images' direction, 0 for a blank one, where the norm has no derivative."""
    blank = jnp.all(images == 0, axis=1, keepdims=True)
    return jnp.where(blank, 0, images / jnp.linalg.norm(images, axis=1, keepdims=True) @ weights)


@pytest.mark.parametrize("estimator", [FiniteDifference(probes=2), GaussNewton()], ids=repr)
def test_a_gradient_that_is_not_finite_is_refused(estimator: Estimator) -> None:
    with pytest.raises(ValueError, match=r"gradient is not finite for 1 of 6 .* index 14"):
        score(directional, WEIGHTS, images=with_entry(IMAGES, 4, 0), estimator=estimator)


def test_arrays_of_another_byte_order_are_scored_alike() -> None:
    expected = score(linear, WEIGHTS)
    turned = {"images": IMAGES.astype(">f4"), "labels": LABELS.astype(">i8")}
    np.testing.assert_array_equal(score(linear, WEIGHTS, **turned), expected)


@pytest.mark.parametrize("name", ["images", "labels", "indices"])
def test_masked_values_are_refused(name: str) -> None:
    array = {"images": IMAGES, "labels": LABELS, "indices": INDICES}[name]
    for hidden in (False, True):
        mask = np.zeros(array.shape, bool)
        mask.flat[1] = hidden
        given = {name: np.ma.MaskedArray(array, mask)}
        if not hidden:
            np.testing.assert_array_equal(score(linear, WEIGHTS, **given), score(linear, WEIGHTS))
            continue
        with pytest.raises(ValueError, match=rf"{name} have masked values: .*\.filled"):
            score(linear, WEIGHTS, **given)
