"""Models whose arrays change between two calls: each call scores what is there now."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcurv import (
    Curvature,
    FiniteDifference,
    GaussNewton,
    flip_probability,
    input_curvature,
    score_dataset,
)
from jaxcurv.engine import cross_entropy
from jaxcurv.margins import Moments, margin_moments
from tests.examined import examined

RNG = np.random.default_rng(4)
FIRST, SECOND = RNG.normal(size=(2, 4, 3)).astype(np.float32)
IMAGES = RNG.normal(size=(5, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 5)


def linear(weights: Any, images: jax.Array) -> jax.Array:
    return images @ weights


def expected_loss(weights: np.ndarray) -> np.ndarray:
    """log sum_j exp(z_j) - z_y of each image, z = W^T x."""
    z = IMAGES.astype(np.float64) @ weights
    return np.log(np.sum(np.exp(z), axis=1)) - z[np.arange(len(z)), LABELS]


def curvature(model: Any, **settings: Any) -> Curvature:
    few = FiniteDifference(probes=1)
    return input_curvature(model, IMAGES, LABELS, estimator=few, **settings)


def score(model: Any, **settings: Any) -> np.ndarray:
    return curvature(model, **settings).score


@dataclass(eq=False)
class Mutable:
    weights: Any

    def logits(self, images: jax.Array) -> jax.Array:
        return images @ self.weights

    def __call__(self, images: jax.Array) -> jax.Array:
        return images @ self.weights


def dictionary(kind: Callable) -> tuple[Any, Callable[[np.ndarray], None]]:
    box = {"w": kind(FIRST)}
    return (lambda x: x @ box["w"]), lambda w: box.update(w=kind(w))


def in_place() -> tuple[Any, Callable[[np.ndarray], None]]:
    weights = FIRST.copy()

    def change(new: np.ndarray) -> None:
        weights[:] = new

    return (lambda x: x @ weights), change


def captured_module() -> tuple[Any, Callable[[np.ndarray], None]]:
    module = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    module.kernel[...] = jnp.asarray(FIRST)

    def change(new: np.ndarray) -> None:
        module.kernel[...] = jnp.asarray(new)

    return (lambda x: module(x)), change


def bound_method() -> tuple[Any, Callable[[np.ndarray], None]]:
    holder = Mutable(FIRST)
    return holder.logits, partial(setattr, holder, "weights")


def callable_object() -> tuple[Any, Callable[[np.ndarray], None]]:
    holder = Mutable(jnp.asarray(FIRST))
    return holder, partial(setattr, holder, "weights")


def partial_arguments() -> tuple[Any, Callable[[np.ndarray], None]]:
    call = partial(lambda x, box: x @ box["w"], box={"w": FIRST})
    return call, lambda w: call.keywords["box"].update(w=w)


@cache
def score_of_second() -> np.ndarray:
    return score(lambda x: x @ SECOND)


CHANGING: dict[str, Callable[[], tuple[Any, Callable[[np.ndarray], None]]]] = {
    "a dictionary of NumPy's arrays": partial(dictionary, np.asarray),
    "a dictionary of JAX's arrays": partial(dictionary, jnp.asarray),
    "an array changed in place": in_place,
    "an NNX module in a lambda": captured_module,
    "a bound method": bound_method,
    "a callable object": callable_object,
    "a partial's arguments": partial_arguments,
}


@pytest.mark.parametrize("make", CHANGING.values(), ids=CHANGING)
def test_arrays_that_changed_are_scored_as_they_are_now(make: Callable) -> None:
    model, change = make()
    np.testing.assert_allclose(curvature(model).loss, expected_loss(FIRST), rtol=1e-5)
    change(SECOND)
    now = curvature(model)
    np.testing.assert_allclose(now.loss, expected_loss(SECOND), rtol=1e-5)
    np.testing.assert_array_equal(now.score, score_of_second())


def test_a_small_change_is_seen() -> None:
    box = {"scale": 1.0}

    def model(x: jax.Array) -> jax.Array:
        return x @ FIRST * box["scale"]

    before = score(model)
    box["scale"] = 1.0 + 1e-5
    assert np.all(score(model) != before)


def test_what_a_function_of_params_closes_over_may_change_too() -> None:
    box = {"bias": np.zeros(3, np.float32)}

    def model(weights: jax.Array, x: jax.Array) -> jax.Array:
        return x @ weights + box["bias"]

    score(model, params=FIRST)
    box["bias"] = np.array([1, 0, -1], np.float32)
    expected = score(lambda w, x: x @ w + np.array([1, 0, -1], np.float32), params=FIRST)
    np.testing.assert_array_equal(score(model, params=FIRST), expected)


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_an_object_that_a_module_holds_may_change_too() -> None:
    class Scaled(nnx.Module):
        def __init__(self) -> None:
            self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
            self.held = Mutable(2.0)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.linear(x) * self.held.weights

    model = Scaled()
    before = score(model)
    model.held.weights = 0.0
    assert np.all(before > 0)
    assert np.all(score(model) == 0)


def test_arrays_of_a_loss_may_change_too() -> None:
    weights = np.ones(3, np.float32)

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.asarray(weights)[labels] * cross_entropy(logits, labels)

    before = score(lambda x: x @ FIRST, loss=loss)
    weights *= 3
    np.testing.assert_allclose(score(lambda x: x @ FIRST, loss=loss), 3 * before, rtol=1e-3)


@pytest.mark.parametrize("jit", [jax.jit, nnx.jit])
@pytest.mark.parametrize("nested", [False, True])
def test_arrays_that_its_own_jit_has_fixed_are_refused(jit: Any, nested: bool) -> None:
    box = {"w": jnp.asarray(FIRST)}
    compiled = jit(lambda x: x @ box["w"])
    model = (lambda x: compiled(x) + 0) if nested else compiled
    np.testing.assert_allclose(curvature(model).loss, expected_loss(FIRST), rtol=1e-5)
    box["w"] = jnp.asarray(SECOND)
    with pytest.raises(ValueError, match=r"own jax\.jit .* params"):
        score(model)


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_a_jit_of_its_own_that_nothing_has_changed_is_scored() -> None:
    table = np.linspace(0, 1, 12).reshape(4, 3)  # float64, which JAX makes float32
    drawn = jax.jit(lambda x: x @ FIRST + np.random.default_rng().normal(size=3))
    for model in (
        jax.jit(lambda x: x @ FIRST + x @ table),
        jax.jit(lambda x: jax.lax.fori_loop(0, 2, lambda _, z: z @ (FIRST @ FIRST.T), x) @ FIRST),
        drawn,  # an ordinary fixed model from its first call on
    ):
        np.testing.assert_array_equal(score(model), score(model))


REMEMBERED: dict[str, Callable[[dict[str, Any]], Callable]] = {
    "checkpoint": lambda box: jax.checkpoint(lambda x: jnp.tanh(x @ box["w"])),
    "number": lambda box: jax.checkpoint(lambda x: jnp.tanh(x @ FIRST) * box["w"][0, 0]),
    "scan": lambda box: partial(_scanned, lambda c, _: (c @ box["w"] @ box["w"].T, None)),
    "fori_loop": lambda box: partial(_looped, lambda _, c: c @ box["w"] @ box["w"].T),
    "cond": lambda box: partial(_branched, lambda x: jnp.tanh(x @ box["w"])),
    "jitted scan": lambda box: jax.jit(
        partial(_scanned, lambda c, _: (c @ box["w"] @ box["w"].T, None))
    ),
}


def _scanned(body: Callable, x: jax.Array) -> jax.Array:
    return jax.lax.scan(body, x, None, length=2)[0] @ FIRST


def _looped(body: Callable, x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 2, body, x) @ FIRST


def _branched(branch: Callable, x: jax.Array) -> jax.Array:
    return jax.lax.cond(jnp.array(True), branch, lambda x: x[:, :3], x)


@pytest.mark.parametrize("make", REMEMBERED.values(), ids=REMEMBERED)
def test_arrays_that_jax_remembers_are_refused(make: Callable) -> None:
    box = {"w": np.asarray(FIRST)}
    model = make(box)
    for _ in range(2):
        examined(model, IMAGES, LABELS)
    first = np.asarray(make(dict(box))(IMAGES))
    box["w"] = 3 * box["w"]
    with pytest.raises(ValueError, match=r"the model's own jax\.jit \(or jax\.checkpoint"):
        examined(model, IMAGES, LABELS)
    assert np.any(make(box)(IMAGES) != first)


PERMUTED: dict[str, Callable[[dict[str, Any]], Callable]] = {
    "two arrays": lambda box: (
        lambda x: 2 * jnp.tanh(x @ box["w"] * box["p"]) + jax.nn.relu(x @ box["w"] * box["q"])
    ),
    "two numbers": lambda box: (
        lambda x: (
            float(box["p"][0]) * jnp.tanh(x @ box["w"])
            + float(box["q"][0]) * jax.nn.relu(x @ box["w"])
        )
    ),
    "a slice's start": lambda box: lambda x: x[:, int(box["p"][0]) :][:, :1] * box["w"][:1],
    "an axis": lambda box: lambda x: jax.lax.cumsum(x, axis=1, reverse=box["p"][0] > 1) @ box["w"],
    "an activation": lambda box: lambda x: (jnp.tanh if box["p"][0] > 1 else jnp.sin)(x @ box["w"]),
    "how often": lambda box: (
        lambda x: jax.lax.fori_loop(0, int(box["p"][0]), lambda _, z: jnp.sin(z), x) @ box["w"]
    ),
    "a shape": lambda box: (
        lambda x: (
            x.reshape(-1, *((2, 2) if box["p"][0] > 1 else (4, 1))).sum(axis=1)[:, :1] * box["w"][0]
        )
    ),
}


@pytest.mark.parametrize("remembers", [jax.jit, jax.checkpoint])
@pytest.mark.parametrize("make", PERMUTED.values(), ids=PERMUTED)
def test_code_that_jax_remembers_is_refused(make: Callable, remembers: Any) -> None:
    """What changes is the order of the arrays, or what the function does with them."""
    box = {"w": FIRST, "p": np.ones(3, np.float32), "q": np.full(3, 2, np.float32)}
    model = remembers(make(box))
    for _ in range(2):
        examined(model, IMAGES, LABELS)
    first = np.asarray(make(dict(box))(IMAGES))
    box["p"], box["q"] = box["q"], box["p"]
    with pytest.raises(ValueError, match=r"own jax\.jit .* arrays or settings that have changed"):
        examined(model, IMAGES, LABELS)
    assert np.any(make(box)(IMAGES) != first)


def test_arrays_that_jax_remembers_of_a_loss_are_refused() -> None:
    box = {"w": np.ones(3, np.float32)}
    loss = jax.checkpoint(lambda z, y: jnp.asarray(box["w"])[y] * cross_entropy(z, y))
    score(linear, params=FIRST, loss=loss)
    box["w"] = 3 * box["w"]
    with pytest.raises(ValueError, match=r"the loss's own jax\.jit \(or jax\.checkpoint"):
        score(linear, params=FIRST, loss=loss)


@pytest.mark.filterwarnings("ignore:a step of")
@pytest.mark.parametrize("kind", ["jvp", "vjp"])
@pytest.mark.parametrize("of", ["model", "loss"])
@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_a_derivative_rule_may_change(kind: str, of: str) -> None:
    box = {"slope": 1.0}
    if kind == "jvp":
        rounded = jax.custom_jvp(lambda x: jnp.round(x))
        rounded.defjvp(lambda x, t: (rounded(x[0]), box["slope"] * t[0]))
    else:
        rounded = jax.custom_vjp(lambda x: jnp.round(x))
        rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (box["slope"] * g,))

    def of_model(x: jax.Array) -> jax.Array:
        return rounded(4 * x @ FIRST)

    def loss(z: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(rounded(4 * z), y)

    settings: dict[str, Any] = {"loss": loss} if of == "loss" else {}
    model = of_model if of == "model" else lambda x: x @ FIRST
    before = curvature(model, **settings).gradient_norm
    box["slope"] = 3.0
    after = curvature(model, **settings).gradient_norm
    np.testing.assert_allclose(after, 3 * before, rtol=1e-5)


def test_arrays_that_stay_compile_nothing_anew(caplog: pytest.LogCaptureFixture) -> None:
    for make in (in_place, captured_module):
        model, change = make()
        score(model)
        change(FIRST.copy())  # equal ones
        caplog.clear()
        with jax.log_compiles():
            score(model)
        assert [r.message for r in caplog.records if "Compiling" in r.message] == []


def test_a_data_set_examines_its_model_with_one_program(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = dictionary(np.asarray)
    with jax.log_compiles():
        score_dataset(model, (IMAGES, LABELS), estimators={"one": FiniteDifference(probes=1)})
    examined = [
        r for r in caplog.records if "Finished XLA compilation of jit(examine)" in r.message
    ]
    assert len(examined) == 1


def test_coarse_arrays_may_be_closed_over() -> None:
    coarse = jnp.asarray(FIRST, jnp.bfloat16)
    found = input_curvature(
        lambda x: x @ coarse.astype(jnp.float32), IMAGES, LABELS, estimator=GaussNewton()
    )
    fine = np.asarray(coarse, np.float32)
    expected = input_curvature(lambda x: x @ fine, IMAGES, LABELS, estimator=GaussNewton())
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-5)


def test_a_data_set_is_scored_with_the_arrays_of_now() -> None:
    model, change = dictionary(np.asarray)
    settings: dict[str, Any] = {"estimators": {"curvature": FiniteDifference(probes=2)}}
    score_dataset(model, (IMAGES, LABELS), **settings)
    change(SECOND)
    now = score_dataset(model, (IMAGES, LABELS), **settings)
    expected = score_dataset(lambda x: x @ SECOND, (IMAGES, LABELS), **settings)
    np.testing.assert_array_equal(now["curvature"], expected["curvature"])
    np.testing.assert_array_equal(now["prediction"], (IMAGES @ SECOND).argmax(1))


def test_margins_are_those_of_the_arrays_of_now() -> None:
    box = {"bias": np.zeros(3, np.float32)}
    noises = {"noise": Moments(None, np.ones((4, 3), np.float32))}

    def model(weights: jax.Array, x: jax.Array) -> jax.Array:
        return x @ weights + box["bias"]

    margin_moments(model, IMAGES, params=FIRST, noises=noises)
    box["bias"] = np.array([9, 0, 0], np.float32)
    found = margin_moments(model, IMAGES, params=FIRST, noises=noises)
    top, second = -np.sort(-(IMAGES @ FIRST + box["bias"]))[:, :2].T
    np.testing.assert_allclose(found.margin, top - second, rtol=1e-5)


# --- what JAX remembers of batches of other sizes than the check's

WIDE = RNG.normal(size=(6, 8)).astype(np.float32)
NARROW = RNG.normal(size=(8, 3)).astype(np.float32)
TURNED = NARROW * np.array([1, -2, 0.5], np.float32)
MANY = RNG.normal(size=(40, 6)).astype(np.float32)
CLASSES = np.arange(40) % 3
FEW = FiniteDifference(probes=2)


def of_box(box: dict[str, Any]) -> Callable:
    return lambda p, x: jnp.tanh(x @ p) @ box["b"]


def scanned_box(box: dict[str, Any]) -> Callable:
    def body(z: jax.Array, _: Any) -> Any:
        return jnp.tanh(z @ box["b"] @ box["b"].T), None

    return lambda p, x: jax.lax.scan(body, x @ p, None, length=2)[0] @ NARROW


OWN_JITS: dict[str, Callable] = {
    "jit": lambda box: jax.jit(of_box(box)),
    "checkpoint": lambda box: jax.checkpoint(of_box(box)),
    "scan": scanned_box,
}


def flipped(model: Callable) -> np.ndarray:
    noise = Moments(None, np.full_like(WIDE, 1e-2))
    return flip_probability(model, (MANY, CLASSES), params=WIDE, moments=noise)["margin"].to_numpy()


def scored(model: Callable, count: int = 40) -> np.ndarray:
    images, labels = MANY[:count], CLASSES[:count]
    return input_curvature(model, images, labels, params=WIDE, estimator=FEW).score


@pytest.mark.parametrize("make", OWN_JITS.values(), ids=OWN_JITS)
@pytest.mark.parametrize("before", [flipped, partial(scored, count=1)], ids=["flips", "scores"])
def test_flips_and_scores_know_of_each_other(before: Callable, make: Callable) -> None:
    box = {"b": NARROW}
    model = make(box)
    before(model)
    box["b"] = TURNED
    for call in (flipped, partial(scored, count=1)):
        with pytest.raises(ValueError, match=r"own jax\.jit .* have changed"):
            call(model)


@pytest.mark.parametrize(
    ("kind", "count", "derived"), [("jit", 8, False), ("checkpoint", 40, True), ("scan", 40, False)]
)
def test_what_the_user_evaluated_in_highest_is_not_scored(
    kind: str, count: int, derived: bool
) -> None:
    box, make = {"b": NARROW}, OWN_JITS[kind]
    model = make(box)
    with jax.default_matmul_precision("highest"):
        if derived:
            jax.grad(lambda x: jnp.sum(model(WIDE, x)))(MANY[:count])
        model(WIDE, MANY[:count])
        box["b"] = TURNED
        np.testing.assert_array_equal(scored(model, count), scored(make({"b": TURNED}), count))


def test_a_loss_that_the_user_evaluated_in_highest_is_that_of_now() -> None:
    box = {"w": np.ones(3, np.float32)}

    def weighted(z: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.asarray(box["w"])[y] * cross_entropy(z, y)

    loss = jax.jit(weighted)
    with jax.default_matmul_precision("highest"):
        loss(MANY @ WIDE @ NARROW, CLASSES)
        box["w"] = np.array([1, 5, 9], np.float32)
        found, expected = (
            input_curvature(lambda x: jnp.tanh(x @ WIDE) @ NARROW, MANY, CLASSES, loss=one).loss
            for one in (loss, lambda z, y: weighted(z, y))
        )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_jitted_derivative_rule_that_the_user_evaluated_is_that_of_now() -> None:
    box = {"slope": 1.0}

    def sloped(slope: Callable[[], float]) -> Callable:
        back = jax.jit(lambda g, z: slope() * g * jnp.cos(z))
        own = jax.custom_vjp(jnp.sin)
        own.defvjp(lambda z: (jnp.sin(z), z), lambda z, g: (back(g, z),))
        return lambda x: own(x @ WIDE) @ NARROW

    model = sloped(lambda: box["slope"])
    with jax.default_matmul_precision("highest"):
        jax.grad(lambda x: jnp.sum(model(x)))(MANY)
        box["slope"] = 3.0
        found, expected = (
            input_curvature(m, MANY, CLASSES, estimator=FEW) for m in (model, sloped(lambda: 3.0))
        )
    np.testing.assert_allclose(found.gradient_norm, expected.gradient_norm, rtol=1e-5)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-3)


def test_equal_models_with_a_jit_of_their_own_share_programs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    box = {"b": NARROW}
    model = jax.jit(of_box(box))
    noise = Moments(None, np.full_like(WIDE, 1e-2))

    def both(params: np.ndarray) -> None:
        input_curvature(model, MANY, CLASSES, params=params, estimator=FEW)
        margin_moments(model, MANY, params=params, noises={"noise": noise})

    both(WIDE)
    box["b"] = NARROW.copy()
    caplog.clear()
    with jax.log_compiles():
        both(2 * WIDE)
    assert [r.message for r in caplog.records if "Compiling" in r.message] == []
