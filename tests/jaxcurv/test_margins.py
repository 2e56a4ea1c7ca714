"""Moments of the logit margin: closed forms, brute force in float64, batches, refusals."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcurv import margins
from jaxcurv.margins import MarginMoments, Moments, margin_moments, margin_table
from jaxcurv.models.resnet import BasicBlock, ResNet

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(11, 6, 6, 2)).astype(np.float32)
INDICES = 5 * np.arange(11) + 2


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@jax.jit
def linear(params: Any, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ params["w"] + params["b"]


@jax.jit
def convnet(params: Any, images: jax.Array) -> jax.Array:
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(images, params["conv"], (2, 2), "SAME", dimension_numbers=dims)
    return jnp.tanh(x).mean((1, 2)) @ params["fc"]


def weights(shapes: dict[str, tuple[int, ...]], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def noise(params: Any, seed: int) -> Moments:
    rng = np.random.default_rng(seed)
    draw = lambda w: rng.normal(size=np.shape(w)).astype(np.asarray(w).dtype)  # noqa: E731
    return Moments(
        mean=jax.tree.map(lambda w: 0.1 * draw(w), params),
        variance=jax.tree.map(lambda w: np.square(draw(w)), params),
    )


LINEAR = weights({"w": (72, 4), "b": (4,)})
CONVNET = weights({"conv": (3, 3, 2, 5), "fc": (5, 4)})


def same(a: MarginMoments, b: MarginMoments, rows: slice = slice(None)) -> None:
    for name in ("prediction", "runner_up", "margin"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name)[rows])
    for name in b.shift:
        np.testing.assert_array_equal(a.shift[name], b.shift[name][rows])
        np.testing.assert_array_equal(a.variance[name], b.variance[name][rows])


def test_a_linear_model_has_a_closed_form() -> None:
    noises = {"one": noise(LINEAR, 2), "two": noise(LINEAR, 3)}
    found = margin_moments(linear, IMAGES, params=LINEAR, noises=noises)
    x = IMAGES.reshape(11, -1).astype(np.float64)
    logits = x @ LINEAR["w"] + LINEAR["b"]
    order = np.argsort(-logits, axis=1)
    top, second = order[:, 0], order[:, 1]
    np.testing.assert_array_equal(found.prediction, top)
    np.testing.assert_array_equal(found.runner_up, second)
    rows = np.arange(11)
    np.testing.assert_allclose(found.margin, logits[rows, top] - logits[rows, second], rtol=1e-4)
    for name, (mean, variance, _) in noises.items():
        # dm/dW is x in the prediction's column and -x in the runner-up's; dm/db is 1 and -1.
        shift = (x * (mean["w"][:, top] - mean["w"][:, second]).T).sum(1)
        shift += mean["b"][top] - mean["b"][second]
        spread = (x**2 * (variance["w"][:, top] + variance["w"][:, second]).T).sum(1)
        spread += variance["b"][top] + variance["b"][second]
        np.testing.assert_allclose(found.shift[name], shift, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.variance[name], spread, rtol=1e-5)


def test_a_convolutional_network_equals_brute_force(float64: None) -> None:
    params = {name: w.astype(np.float64) for name, w in CONVNET.items()}
    images = IMAGES.astype(np.float64)
    moments = noise(params, 4)
    found = margin_moments(convnet, images, params=params, noises={"n": moments})
    assert found.variance["n"].dtype == np.float64
    jacobian = jax.jit(jax.jacobian(convnet))(params, images)  # [batch, class, *weight]
    rows = np.arange(11)
    shift, variance = 0.0, 0.0
    for name, j in jacobian.items():
        g = np.asarray(j[rows, found.prediction] - j[rows, found.runner_up]).reshape(11, -1)
        shift += g @ moments.mean[name].ravel()
        variance += g**2 @ moments.variance[name].ravel()
    np.testing.assert_allclose(found.shift["n"], shift, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.variance["n"], variance, rtol=1e-10)


def test_a_resnet_equals_finite_differences(float64: None) -> None:
    @nnx.jit
    def build() -> ResNet:  # one block: fast to compile
        return ResNet(
            BasicBlock, (1, 0, 0, 0), num_classes=3, stem="cifar", width=2, in_channels=2,
            dtype=jnp.float64, rngs=nnx.Rngs(0),
        )  # fmt: skip

    model = build()
    model.eval()
    graph, state = nnx.split(model)
    state = jax.tree.map(lambda w: np.asarray(w, np.float64), state)
    model = nnx.merge(graph, state)
    images = IMAGES[:8].astype(np.float64)
    kernel = np.asarray(state["layer1"][0]["conv2"]["kernel"][...])
    some = np.zeros(kernel.shape)
    some[1, 1, 0, 1] = 1.0

    def moments(mean: float, variance: float) -> Moments:
        def tree(value: float) -> Any:
            zeros = jax.tree.map(lambda w: np.zeros(w.shape), state)
            entry = zeros["layer1"][0]["conv2"]["kernel"]
            zeros["layer1"][0]["conv2"]["kernel"] = entry.replace(value * some)
            return nnx.merge(graph, zeros)  # a module, as bridge.from_torch gives

        return Moments(tree(mean), tree(variance))

    found = margin_moments(model, images, noises={"n": moments(2.0, 9.0)})

    logits_of = jax.jit(lambda state, images: nnx.merge(graph, state)(images))

    def margin_at(step: float) -> np.ndarray:
        _, moved = nnx.split(model)
        entry = moved["layer1"][0]["conv2"]["kernel"]
        moved["layer1"][0]["conv2"]["kernel"] = entry.replace(kernel + step * some)
        logits = np.asarray(logits_of(moved, images))
        rows = np.arange(8)
        return logits[rows, found.prediction] - logits[rows, found.runner_up]

    derivative = (margin_at(1e-6) - margin_at(-1e-6)) / 2e-6
    assert np.all(np.abs(derivative) > 1e-3)
    np.testing.assert_allclose(found.margin, margin_at(0.0), rtol=1e-12)
    np.testing.assert_allclose(found.shift["n"], 2 * derivative, rtol=1e-6)
    np.testing.assert_allclose(found.variance["n"], 9 * derivative**2, rtol=1e-6)


def test_margins_of_a_given_class() -> None:
    """Over the best other class, so that they are negative where it is not the prediction."""
    noises = {"n": noise(LINEAR, 2)}
    own = margin_moments(linear, IMAGES, params=LINEAR, noises=noises)
    same(margin_moments(linear, IMAGES, params=LINEAR, noises=noises, classes=own.prediction), own)
    other = margin_moments(linear, IMAGES, params=LINEAR, noises=noises, classes=own.runner_up)
    np.testing.assert_array_equal(other.prediction, own.runner_up)
    np.testing.assert_array_equal(other.runner_up, own.prediction)
    np.testing.assert_allclose(other.margin, -own.margin, rtol=1e-5)
    np.testing.assert_allclose(other.shift["n"], -own.shift["n"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.variance["n"], own.variance["n"], rtol=1e-5)
    table = margin_table(linear, source(), params=LINEAR, noises=noises, of="label")
    labels = np.array([sample["label"] for sample in source()])
    found = margin_moments(linear, IMAGES, params=LINEAR, noises=noises, classes=labels)
    np.testing.assert_array_equal(table["margin"].to_numpy(), found.margin)
    assert 0 < (found.margin < 0).sum() < 11
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
        margin_moments(linear, IMAGES, params=LINEAR, noises=noises, classes=labels + 4)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    noises = {"n": noise(CONVNET, 5)}
    whole = margin_moments(convnet, IMAGES, params=CONVNET, noises=noises)
    for rows in (slice(4, 5), slice(2, 11)):
        part = margin_moments(convnet, IMAGES[rows], params=CONVNET, noises=noises)
        same(part, whole, rows)


def test_gradients_of_few_samples_are_held_where_the_budget_is_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noises = {"n": noise(CONVNET, 5)}
    chunks = []
    compiled = margins._chunk_moments

    def counted(*args: Any, **settings: Any) -> Any:
        chunks.append(len(args[-1]))
        return compiled(*args, **settings)

    monkeypatch.setattr(margins, "_chunk_moments", counted)
    usual = margin_moments(convnet, IMAGES, params=CONVNET, noises=noises)
    size = sum(w.nbytes for w in CONVNET.values())
    assert chunks == [8, 8]
    for budget, expected in ((3 * size + 1, [3] * 4), (1, [1] * 11)):
        chunks.clear()
        monkeypatch.setattr(margins, "_GRADIENT_BYTES", budget)
        found = margin_moments(convnet, IMAGES, params=CONVNET, noises=noises)
        assert chunks == expected
        np.testing.assert_allclose(found.shift["n"], usual.shift["n"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.variance["n"], usual.variance["n"], rtol=1e-5)


def test_weights_without_noise_are_not_differentiated() -> None:
    """sqrt has no finite gradient at 0: one that is not asked for cannot spoil the rest."""

    def rooted(params: Any, images: jax.Array) -> jax.Array:
        return linear(params, images) + jnp.sqrt(params["exact"]) + 0 * params["count"]

    params = LINEAR | {"exact": np.zeros(4, np.float32), "count": np.zeros(4, np.int32)}
    moments = noise(LINEAR, 6)
    exact = {"exact": np.zeros(4, np.float32), "count": np.zeros(4, np.int32)}
    padded = Moments(moments.mean | exact, moments.variance | exact)
    found = margin_moments(rooted, IMAGES, params=params, noises={"n": padded})
    same(found, margin_moments(linear, IMAGES, params=LINEAR, noises={"n": moments}))
    none = Moments(*(jax.tree.map(np.zeros_like, params) for _ in range(2)))
    quiet = margin_moments(rooted, IMAGES, params=params, noises={"n": none})
    np.testing.assert_array_equal(quiet.shift["n"], np.zeros(11))
    np.testing.assert_array_equal(quiet.variance["n"], np.zeros(11))
    noisy = Moments(padded.mean, padded.variance | {"exact": np.ones(4, np.float32)})
    with pytest.raises(ValueError, match="not finite for 11 of 11 samples, the first at index 2"):
        margin_moments(rooted, IMAGES, params=params, noises={"n": noisy}, indices=INDICES)


def test_of_equal_logits_the_first_two_count() -> None:
    params = {"w": np.zeros((72, 4), np.float32), "b": np.zeros(4, np.float32)}
    found = margin_moments(linear, IMAGES[:2], params=params, noises={"n": noise(params, 7)})
    assert found.prediction.tolist() == [0, 0]
    assert found.runner_up.tolist() == [1, 1]
    assert found.margin.tolist() == [0.0, 0.0]


def source(count: int = 11) -> list[Any]:
    rows = zip(IMAGES[:count], INDICES, strict=False)
    return [{"image": image, "label": 0, "index": int(index)} for image, index in rows]


def test_the_table_has_the_batches_rows_and_compiles_once() -> None:
    noises = {"pcm": noise(CONVNET, 8), "wnoise": noise(CONVNET, 9)}
    before = margins._chunk_moments._cache_size()
    table = margin_table(convnet, source(), params=CONVNET, noises=noises, batch_size=4)
    assert margins._chunk_moments._cache_size() == before + 1
    assert table.dtypes.astype(str).to_dict() == {
        "index": "int64",
        "prediction": "int32",
        "runner_up": "int32",
        "margin": "float32",
        "pcm_shift": "float32",
        "pcm_variance": "float32",
        "wnoise_shift": "float32",
        "wnoise_variance": "float32",
    }
    assert table["index"].tolist() == INDICES.tolist()
    whole = margin_moments(convnet, IMAGES, params=CONVNET, noises=noises)
    np.testing.assert_array_equal(table["margin"].to_numpy(), whole.margin)
    np.testing.assert_array_equal(table["wnoise_shift"].to_numpy(), whole.shift["wnoise"])
    np.testing.assert_array_equal(table["pcm_variance"].to_numpy(), whole.variance["pcm"])


def changed(which: str, **leaves: Any) -> dict[str, Moments]:
    moments = noise(LINEAR, 2)
    return {"pcm": moments._replace(**{which: getattr(moments, which) | leaves})}


@pytest.mark.parametrize(
    ("noises", "message"),
    [
        ({}, "no noises to propagate"),
        (changed("mean", more=np.zeros(3)), r"the mean of pcm is no tree like.*\['more'\]"),
        (changed("mean", b=np.zeros(3)), r"the mean of pcm has shape \(3,\) at \['b'\].*\(4,\)"),
        (changed("variance", b=-np.ones(4)), r"the variance of pcm is negative in \['b'\]"),
        (changed("mean", b=np.full(4, np.nan)), r"the mean of pcm is not finite at \['b'\]"),
    ],
)
def test_moments_that_do_not_fit_are_refused(noises: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        margin_moments(linear, IMAGES, params=LINEAR, noises=noises)


def test_models_and_images_that_do_not_fit_are_refused() -> None:
    noises = {"n": noise(LINEAR, 2)}

    def mixing(params: Any, images: jax.Array) -> jax.Array:
        return linear(params, images) - images.mean()

    with pytest.raises(ValueError, match="no floating weights to differentiate"):
        margin_moments(lambda images: images.mean((1, 2)), IMAGES, noises=noises)
    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        # What is the same for all classes leaves the margin, but not the logits.
        margin_moments(mixing, IMAGES, params=LINEAR, noises=noises)
    with pytest.raises(ValueError, match="images hold NaN or infinity"):
        margin_moments(linear, IMAGES * np.nan, params=LINEAR, noises=noises)
    integers = LINEAR | {"count": np.ones(2, np.int32)}
    with pytest.raises(ValueError, match=r"the mean of n is not zero at \['count'\]"):
        margin_moments(linear, IMAGES, params=integers, noises={"n": Moments(integers, integers)})


def test_sources_that_do_not_fit_are_refused() -> None:
    settings: dict[str, Any] = {"params": LINEAR, "noises": {"n": noise(LINEAR, 2)}}
    with pytest.raises(ValueError, match="nothing to compute: 0 samples in batches of 64"):
        margin_table(linear, [], **settings)
    with pytest.raises(ValueError, match="nothing to compute: 11 samples in batches of 0"):
        margin_table(linear, source(), batch_size=0, **settings)
    twice = [*source(5), source(1)[0]]
    with pytest.raises(ValueError, match="two samples share index 2"):
        margin_table(linear, twice, batch_size=2, **settings)
    odd = [*source(1), source(1)[0] | {"image": IMAGES[0, :3], "index": 1}]
    with pytest.raises(ValueError, match="images must have one shape"):
        margin_table(linear, odd, **settings)


TWO = {"a": weights({"a": (6, 5)})["a"], "b": weights({"b": (5, 3)})["b"]}


def stopped(p: Any) -> Any:
    return jax.lax.stop_gradient(p)


DEAD: dict[str, Any] = {
    "a frozen backbone": lambda p, x: stopped(jax.nn.relu(x @ p["a"])) @ p["b"],
    "frozen weights": lambda p, x: jax.nn.relu(x @ stopped(p["a"])) @ p["b"],
    "signs": lambda p, x: jax.nn.relu(x @ jnp.sign(p["a"])) @ p["b"],
    "8 bits": lambda p, x: jax.nn.relu(x @ (jnp.round(p["a"] * 20) / 20)) @ p["b"],
    "a comparison": lambda p, x: jnp.tanh(x @ jnp.where(p["a"] > 0, 1.0, -1.0)) @ p["b"],
    "int8": lambda p, x: jnp.tanh(x @ (p["a"] * 20).astype(jnp.int8).astype(x.dtype)) @ p["b"],
    "in a jit": jax.jit(lambda p, x: jax.nn.relu(x @ jnp.sign(p["a"])) @ p["b"]),
    "in a checkpoint": jax.checkpoint(lambda p, x: jnp.tanh(x @ stopped(p["a"])) @ p["b"]),
    "in a scan": lambda p, x: (
        jax.lax.scan(lambda z, _: (z @ jnp.round(p["a"] @ p["a"].T), None), x, None, length=2)[0][
            :, :5
        ]
        @ p["b"]
    ),
}


@pytest.mark.parametrize("model", DEAD.values(), ids=DEAD)
def test_noisy_weights_without_a_derivative_are_named(model: Any) -> None:
    images = RNG.normal(size=(4, 6)).astype(np.float32)
    noises = {"n": noise(TWO, 2)}
    with pytest.raises(ValueError, match=r"no derivative .* noisy weights \['a'\], which"):
        margin_moments(model, images, params=TWO, noises=noises)
    exact = {"n": Moments(*({**tree, "a": 0 * tree["a"]} for tree in noises["n"][:2]))}
    assert np.all(margin_moments(model, images, params=TWO, noises=exact).variance["n"] > 0)


@pytest.mark.parametrize(
    "model",
    [
        lambda p, x: x[:, :5] @ p["b"],
        jax.jit(lambda p, x: x[:, :5] @ p["b"]),
        jax.jit(lambda p, x: jax.checkpoint(lambda p, x: x[:, :5] @ p["b"])(p, x)),
        lambda p, x: jax.lax.scan(
            lambda z, w: (z + w[0, 0] * jnp.sin(z), None), x[:, :5], p["b"][None]
        )[0] @ p["b"],
        lambda p, x: jax.lax.scan(
            lambda z, _: ((z[0] + jnp.sin(z[0]), z[1]), None), (x[:, :5], p["a"]), None, length=2
        )[0][0] @ p["b"],
        lambda p, x: jax.lax.cond(
            x.ndim == 2, lambda p, z: z @ p["b"], lambda p, z: z[:, :3], p, x[:, :5]
        ),
        lambda p, x: jax.nn.relu(jnp.round(x) @ p["a"]) @ p["b"],
        lambda p, x: jax.nn.softmax(x @ p["a"]) @ p["b"],
        lambda p, x: jnp.tanh(x @ (p["a"] * (TWO["a"] > 0))) @ p["b"],
        lambda p, x: jnp.tanh(x @ (p["a"] + stopped(jnp.round(p["a"]) - p["a"]))) @ p["b"],
        lambda p, x: jnp.tanh(x @ (0 * p["a"])) @ p["b"] + x[:, :5] @ p["b"],
    ],
    ids=[
        *("unused", "unused in a jit", "unused in a checkpoint", "unused in a scan"),
        *("carried alone", "a branch", "rounded images", "softmax", "pruned", "straight through"),
        "times 0",
    ],
)  # fmt: skip
def test_noisy_weights_that_are_unused_or_have_a_derivative_are_allowed(model: Any) -> None:
    images = RNG.normal(size=(4, 6)).astype(np.float32)
    found = margin_moments(model, images, params=TWO, noises={"n": noise(TWO, 2)})
    assert np.all(found.variance["n"] > 0)
