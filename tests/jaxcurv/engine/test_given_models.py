"""What people give for a model that is none, or for weights: the message names the way."""

import functools
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.linen
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from flax.training.train_state import TrainState

from jaxcurv import (
    FiniteDifference,
    HessianVector,
    flip_probability,
    input_curvature,
    score_dataset,
)
from jaxcurv.margins import Moments
from tests.refusals import refused

RNG = np.random.default_rng(5)
IMAGES = RNG.normal(size=(6, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 6)
WEIGHTS = RNG.normal(size=(4, 3)).astype(np.float32)
ONE = FiniteDifference(probes=1)


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    """A module as in Equinox: a pytree that holds arrays and its activation."""

    weights: Any
    activation: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activation(x @ self.weights)


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return flax.linen.Dense(3)(x)


class Module(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)


Transformed = namedtuple("Transformed", "init apply")
VARIABLES = {"params": {"Dense_0": {"kernel": WEIGHTS, "bias": np.zeros(3, np.float32)}}}
TORCH = torch.nn.Linear(4, 3)


def call(model: Any, x: jax.Array) -> jax.Array:
    return model(x)


def product(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def score(model: Any, params: Any = None) -> np.ndarray:
    return input_curvature(model, IMAGES, LABELS, params=params, estimator=ONE).score


NO_MODEL: dict[str, tuple[Any, Any, str]] = {
    "an Equinox module": (Layer(WEIGHTS, jnp.tanh), None, r"Layer .*eqx\.partition"),
    "a Linen module": (Linen(), None, "Linen module Linen.* give its apply.*variables as params"),
    "a Linen module and variables": (Linen(), VARIABLES, "Linen module Linen.* give its apply"),
    "a Linen class": (Linen, VARIABLES, "the class Linen.*instance"),
    "an NNX class": (Module, None, "the class Module.*instance"),
    "a torch class": (torch.nn.Linear, None, "the class Linear.*instance"),
    "a torch module": (TORCH, None, r"the torch module Linear.*bridge\.from_torch"),
    "its forward": (TORCH.forward, None, r"the torch module Linear.*bridge\.from_torch"),
    "weights alone": (VARIABLES, None, r"got a dict, .*model\.apply.* as params"),
    "an array": (WEIGHTS, None, r"got a ndarray, .*model\.apply.* as params"),
    "both exchanged": ({"w": WEIGHTS}, product, r"got a dict, .*function first"),
    "Haiku's pair": (Transformed(None, product), None, r"got a Transformed, .*its apply"),
    "a train state": (
        TrainState.create(apply_fn=Linen().apply, params=VARIABLES["params"], tx=optax.sgd(1)),
        None,
        "got a TrainState: give its apply_fn",
    ),
    "None": (None, None, "got a NoneType, .*give a function images -> logits"),
    "a name": ("resnet18", None, "got a str, .*give a function images -> logits"),
}


@pytest.mark.parametrize(("model", "params", "message"), NO_MODEL.values(), ids=NO_MODEL)
def test_what_is_no_model_is_refused(model: Any, params: Any, message: str) -> None:
    with refused(message):
        score(model, None if callable(params) else params)
    with refused(message):
        score_dataset(model, (IMAGES, LABELS), params=None if callable(params) else params)


NO_WEIGHTS: dict[str, tuple[Callable, Any, str]] = {
    "a function": (call, Layer(WEIGHTS, jax.nn.relu), r"params\.activation is .* relu: .*eqx\."),
    "a jitted one": (call, Layer(WEIGHTS, jax.jit(jnp.tanh)), r"params\.activation is .*split"),
    "a partial": (
        call,
        Layer(WEIGHTS, functools.partial(jax.nn.gelu, approximate=False)),
        r"params\.activation is .*split",
    ),
    "a text": (product, {"w": WEIGHTS, "name": "fc"}, r"params\['name'\] is the text 'fc'"),
    "an array of texts": (
        product,
        {"w": WEIGHTS, "name": np.array("fc")},
        r"\['name'\] is an array of <U2",
    ),
    "an array of objects": (
        product,
        {"w": WEIGHTS.astype(object)},
        r"params\['w'\] is an array of object",
    ),
    "a set": (product, {"w": WEIGHTS, "some": {1}}, r"params\['some'\] is a set"),
    "a dtype": (product, {"w": WEIGHTS, "dtype": jnp.float32}, r"\['dtype'\] is .*float32"),
    "a torch tensor": (product, {"w": torch.zeros(4, 3)}, r"\['w'\] is a torch tensor: bridge"),
    "a parameter": (product, {"w": TORCH.weight}, r"\['w'\] is a torch tensor: bridge"),
    "a shape": (
        product,
        {"w": jax.ShapeDtypeStruct((4, 3), jnp.float32)},
        r"\['w'\] is a shape without values",
    ),
}


@pytest.mark.parametrize(("model", "params", "message"), NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_weights_that_are_no_arrays_are_refused(model: Any, params: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(model, params)
    with pytest.raises(ValueError, match=message):
        score_dataset(model, (IMAGES, LABELS), params=params)
    with pytest.raises(ValueError, match=message.replace("params", r"checkpoints\[0\]")):
        score_dataset(model, (IMAGES, LABELS), checkpoints=[params])
    with pytest.raises(ValueError, match=message):
        flip_probability(model, (IMAGES, LABELS), params=params, moments=Moments(None, params))


def test_weights_that_were_donated_are_refused() -> None:
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree), donate_argnums=0)
    params, module = {"w": jnp.array(WEIGHTS)}, nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    new = step(params)
    step(nnx.state(module))
    with pytest.raises(ValueError, match=r"^params\['w'\] .*donate_argnums\): give the new params"):
        score(product, params)
    with pytest.raises(ValueError, match=r"^checkpoints\[1\]\['w'\] .*donate_argnums"):
        score_dataset(product, (IMAGES, LABELS), checkpoints=[new, params])
    with pytest.raises(ValueError, match=r"^the module\['bias'\].*donate_argnums"):
        score(module, None)
    with pytest.raises(ValueError, match=r"closes over an array that was deleted.*donate_argnums"):
        score(lambda images: product(params, images), None)
    score(product, new)


def test_the_way_that_the_message_names_works() -> None:
    """As `eqx.partition` and `eqx.combine` do it."""
    layer = Layer(WEIGHTS, jnp.tanh)

    def split(params: Any, images: jax.Array) -> jax.Array:
        return jax.vmap(Layer(params.weights, layer.activation))(images)

    found = score(split, Layer(WEIGHTS, None))
    np.testing.assert_allclose(found, score(lambda x: jnp.tanh(x @ WEIGHTS)), rtol=1e-3)


@pytest.mark.parametrize(
    "params",
    [
        {"w": WEIGHTS, "bias": None},
        {"w": WEIGHTS, "scale": 2.0, "count": 3, "on": True},
        {"w": jnp.asarray(WEIGHTS), "key": jax.random.key(0)},
        {"w": WEIGHTS, "small": jnp.zeros(2, jnp.int8), "number": np.float32(1)},
    ],
    ids=["None", "Python's numbers", "a key", "other dtypes"],
)
def test_leaves_that_jax_takes_are_no_matter(params: Any) -> None:
    np.testing.assert_array_equal(score(product, params), score(product, {"w": WEIGHTS}))


FAILING: dict[str, tuple[Callable, Any, str]] = {
    "torch in a lambda": (
        lambda x: torch.nn.functional.linear(x, TORCH.weight),
        None,
        r"the model fails .*must be JAX code",
    ),
    "a torch module in a lambda": (
        lambda x: torch.nn.Conv2d(4, 3, 1)(x),
        None,
        r"calls torch.*bridge\.from_torch",
    ),
    "a number that decides a shape": (
        lambda p, x: x.reshape(len(x), p["n"]) @ p["w"],
        {"w": WEIGHTS, "n": 4},
        r"params\['n'\] is a Python number",
    ),
    "a number that decides a branch": (
        lambda p, x: x @ p["w"] if p["on"] else x,
        {"w": WEIGHTS, "on": True},
        r"params\['on'\] is a Python number",
    ),
    "Linen's params for its variables": (
        Linen().apply,
        VARIABLES["params"],
        r'a Linen model.s apply takes all its variables: params=\{"params": ',
    ),
    "Haiku's apply": (
        lambda p, rng, x: x @ p["w"],
        {"w": WEIGHTS},
        "it is called with params and images",
    ),
    "no params": (product, None, "it is called with the images alone, for no params are given"),
    "token ids as floats": (
        lambda x: nnx.Embed(9, 3, rngs=nnx.Rngs(0))(x).mean(1),
        None,
        "for token ids .* give their embeddings",
    ),
    "an index of floats": (lambda x: jnp.asarray(WEIGHTS)[x[:, 0]], None, "give their embeddings"),
    "NumPy": (lambda x: np.asarray(x) @ WEIGHTS, None, "must be JAX code"),
}


@pytest.mark.parametrize(("model", "params", "message"), FAILING.values(), ids=FAILING)
def test_a_model_that_fails_is_told_in_one_line(model: Any, params: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        score(model, params)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 700


# --- NNX modules that hold and use what Flax allows


class Dense(nnx.Module):
    """Linear and tanh, with an attribute of its own."""

    def __init__(self, attribute: Any = None) -> None:
        self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.attribute = attribute
        self.eval()

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.dropout(self.linear(x)))

    def doubled(self, x: jax.Array) -> jax.Array:
        return 2 * self(x)


class Jitted(Dense):
    @nnx.jit
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.linear(x))


class Rematerialised(Dense):
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(nnx.remat(nnx.Linear.__call__)(self.linear, x))


class Scanned(Dense):
    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(None, nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        def step(linear: nnx.Linear, carry: jax.Array, row: jax.Array) -> Any:
            return carry, linear(row)

        return jnp.tanh(step(self.linear, jnp.zeros(()), x)[1])


@functools.cache
def plain_score(estimator: FiniteDifference | HessianVector) -> np.ndarray:
    return input_curvature(Dense(), IMAGES, LABELS, estimator=estimator).score


@pytest.mark.parametrize("kind", [Jitted, Rematerialised, Scanned])
def test_a_module_may_use_transforms_of_flax(kind: Any) -> None:
    for estimator, rtol in ((ONE, 1e-3), (HessianVector(2), 1e-4)):
        found = input_curvature(kind(), IMAGES, LABELS, estimator=estimator).score
        np.testing.assert_allclose(found, plain_score(estimator), rtol=rtol)


def test_a_closed_over_module_under_a_transform_of_flax_is_told() -> None:
    module = Dense()
    predict = nnx.jit(lambda module, x: module(x))
    with pytest.raises(ValueError, match=r"nnx\.jit.*give the module itself"):
        score(lambda x: predict(module, x))


def test_methods_of_a_module_are_functions() -> None:
    module = Dense()
    np.testing.assert_array_equal(score(module.__call__), score(lambda x: module(x)))
    np.testing.assert_array_equal(score(module.doubled), score(lambda x: 2 * module(x)))


@pytest.mark.parametrize(
    "attribute", [[64, 128], {"k": 1}, {1, 2}, slice(1), bytearray(b"x")], ids=repr
)
def test_a_module_may_have_attributes_that_do_not_hash(attribute: Any) -> None:
    np.testing.assert_array_equal(score(Dense(attribute)), plain_score(ONE))


def test_such_an_attribute_may_change() -> None:
    class Scaled(Dense):
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.attribute["scale"] * self.linear(x)

    module = Scaled({"scale": 1.0})
    score(module)
    module.attribute["scale"] = 3.0
    np.testing.assert_array_equal(score(module), score(Scaled({"scale": 3.0})))


@pytest.mark.parametrize("params", [None, {"w": WEIGHTS, "key": jax.random.key(0)}])
def test_a_model_that_holds_a_key_may_fail_too(params: Any) -> None:
    with pytest.raises(ValueError, match="the model fails on float32 images"):
        input_curvature(product if params else Dense(), IMAGES[:, :3], LABELS, params=params)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_token_ids_are_told_to_be_embedded(dtype: Any) -> None:
    ids = np.arange(24).reshape(6, 4).astype(dtype)
    with refused("for token ids .* give their embeddings"):
        input_curvature(Dense(), ids, LABELS)


@pytest.mark.parametrize(
    "made",
    [
        lambda f, x: f.lower(x).compile(),
        lambda f, x: f.lower(x),
        lambda f, x: functools.partial(f.lower(x).compile()),
        lambda f, x: (lambda compiled: lambda images: compiled(images))(f.lower(x).compile()),
        lambda f, x: jax.jit(f).lower(x).compile().__call__,
    ],
    ids=["compiled", "lowered", "a partial", "in a lambda", "a method"],
)
def test_a_compiled_function_is_told_to_be_given_as_it_was(made: Any) -> None:
    function = made(jax.jit(lambda x: x[:, :3]), np.ones((5, 4), np.float32))
    with refused(r"as it is before \.lower\(\) and \.compile\(\)"):
        score(function)


def test_an_exported_function_without_a_derivative_is_told() -> None:
    rows = jax.export.symbolic_shape("rows, 4")
    exported = jax.export.export(jax.jit(lambda x: jnp.tanh(x[:, :3])))(
        jax.ShapeDtypeStruct(rows, jnp.float32)
    )
    np.testing.assert_array_equal(score(exported.call), score(lambda x: jnp.tanh(x[:, :3])))
    stored = replace(exported, _get_vjp=None)  # as it is serialized
    for function in (stored, stored.call):
        with refused(r"jax\.export without its derivative.*vjp_order"):
            score(function)
