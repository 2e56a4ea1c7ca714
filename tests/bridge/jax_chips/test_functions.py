"""What of a function goes to tiles: functions of all kinds, and those that are refused."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import sparse

import bridge
from bridge.chips import ADC, PCM, Profile, WeightNoise
from bridge.jax_chips import Chip, analog, jaxprs, layer_report, predict
from jaxcurv.models import ResNet18
from tests.torch_networks import made

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6)).astype(np.float32)
FINE = Profile(adc=ADC(23, range=100.0))
"""A converter so fine that tiles compute nearly what the function does."""


def weight(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


W, V, S = weight(6, 6), weight(6, 3), weight(3, 6, 6)


@jax.custom_jvp
def doubled(x: Any) -> Any:
    return 2 * x


doubled.defjvp(lambda primals, tangents: (doubled(primals[0]), 5 * tangents[0]))


def layers_in_a_scan(params: Any, x: Any) -> Any:
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["S"])[0] @ params["V"]


def steps_in_a_scan(params: Any, x: Any) -> Any:
    def step(h: Any, column: Any) -> Any:
        h = jnp.tanh(column[:, None] * jnp.ones(6) @ params["W"] + h)
        return h, h.sum()

    h, _ = jax.lax.scan(step, jnp.zeros_like(x), x.T, reverse=True)
    return h @ params["V"]


def branches(params: Any, x: Any) -> Any:
    h = jax.lax.cond(
        params["V"].sum() > 0, lambda: x @ params["W"], lambda: x @ params["W"].T.T + 1
    )
    return h @ params["V"]


def packed(params: Any, x: Any) -> Any:
    tokens = x[:, None] * jnp.arange(1.0, 4.0)[:, None]
    q, k, v = (tokens @ part for part in jnp.split(params["P"], 3, axis=1))
    return jnp.einsum("bts,bsi->bi", jax.nn.softmax(jnp.einsum("bti,bsi->bts", q, k)), v)


PICKED = "weights that the images choose or scale"

FUNCTIONS: dict[str, tuple[Any, dict[str, Any], dict[str, str]]] = {
    # A function, its parameters, and what is on tiles with the reason why all else is not.
    "matmul": (lambda p, x: x @ p["W"] @ p["V"], {"W": W, "V": V}, {"W": "", "V": ""}),
    "from_the_left": (
        lambda p, x: jnp.einsum("oi,bi->ob", p["W"], x).T @ p["V"],
        {"W": W, "V": V},
        {"W": "", "V": ""},
    ),
    "two_axes": (
        lambda p, x: jnp.einsum("bij,hijk->bhk", x.reshape(-1, 2, 3), p["H"]).reshape(len(x), -1),
        {"H": weight(2, 2, 3, 4)},
        {"H": ""},
    ),
    "jit": (
        lambda p, x: jax.jit(lambda w, x: jax.nn.relu(x @ w))(p["W"].T, x) @ p["V"],
        {"W": W, "V": V},
        {"W": "", "V": ""},
    ),
    "remat": (
        lambda p, x: jax.checkpoint(lambda x: jnp.sin(x @ p["W"]))(x) @ p["V"],
        {"W": W, "V": V},
        {"W": "", "V": ""},
    ),
    "custom_jvp": (lambda p, x: doubled(x @ p["W"]), {"W": W}, {"W": ""}),
    "layers_in_a_scan": (
        layers_in_a_scan,
        {"S": S, "V": V},
        dict.fromkeys(("S[0]", "S[1]", "S[2]", "V"), ""),
    ),
    "steps_in_a_scan": (steps_in_a_scan, {"W": W, "V": V}, {"V": "", "W": ""}),
    "branches": (branches, {"W": W, "V": V}, {"V": "", "W": ""}),
    "packed": (
        packed,
        {"P": weight(6, 12)},
        {"P[0]": "", "P[1]": "", "P[2]": "", "": "two activations"},
    ),
    "twice": (lambda p, x: jnp.tanh(x @ p["W"]) @ p["W"], {"W": W}, {"W": ""}),
    "frozen": (
        lambda p, x: jnp.tanh(x @ jax.lax.stop_gradient(p["W"])) @ p["V"][::-1],
        {"W": W, "V": weight(6, 3)},
        {"W": "", "V": ""},
    ),
    "parameters_alone": (
        lambda p, x: x @ p["W"] + (p["V"].T @ p["L"])[0, 0],
        {"W": W, "V": V, "L": weight(6, 2)},
        {"L, V": "parameters alone", "W": ""},
    ),
    "gathered": (
        lambda p, x: jnp.einsum("bi,bio->bo", x, p["E"][(x @ p["V"]).argmax(-1)]),
        {"E": weight(3, 6, 4), "V": V},
        {"V": "", "E": PICKED},
    ),
    "chosen_by_where": (
        lambda p, x: jax.vmap(lambda x: x @ jnp.where(x[0] > 0, p["E"][0], p["E"][1]))(x @ p["W"]),
        {"E": weight(2, 6, 4), "W": W},
        {"E": PICKED, "W": ""},
    ),
    "chosen_by_switch": (
        lambda p, x: jax.vmap(
            lambda x: jax.lax.switch((x > 0).sum() % 3, [lambda e=e: x @ e for e in p["E"]])
        )(x @ p["W"]),
        {"E": weight(3, 6, 4), "W": W},
        {"E, W": "a weight of its own for each row", "W": ""},
    ),
    "chosen_by_cond": (
        lambda p, x: jax.lax.map(
            lambda x: x @ jax.lax.cond(x[0] > 0, lambda: p["E"][0], lambda: p["E"][1]),
            x @ p["W"],
        ),
        {"E": weight(2, 6, 4), "W": W},
        {"E": PICKED, "W": ""},
    ),
    "sliced_at_a_place": (
        lambda p, x: jax.vmap(
            lambda x: x @ jax.lax.dynamic_index_in_dim(p["E"], (x > 0).sum() % 3, keepdims=False)
        )(x @ p["W"]),
        {"E": weight(3, 6, 4), "W": W},
        {"E": PICKED, "W": ""},
    ),
    "modulated": (
        lambda p, x: jnp.einsum("bi,bio->bo", x @ p["W"], p["V"] * jax.nn.sigmoid(x)[:, :, None]),
        {"V": V, "W": W},
        {"V": PICKED, "W": ""},
    ),
    "embedded": (
        lambda p, x: p["T"][(x[:, 0] > 0).astype(int)] @ p["V"] + x[:, :3],
        {"T": weight(2, 6), "V": V},
        {"V": ""},
    ),
    "scaled_activations": (
        lambda p, x: jnp.einsum("bi,bj->bij", p["g"] * x, x).reshape(len(x), -1)[:, :6] @ p["V"],
        {"g": weight(6), "V": V},
        {"": "two activations", "V": ""},
    ),
    "constant_in_jit": (
        lambda p, x: jax.jit(lambda x: x @ jnp.asarray(W))(x) @ p["V"],
        {"V": V},
        {"": "a constant of the function, which is not in params", "V": ""},
    ),
    "empty": (
        lambda p, x: x @ p["W"] + x[:, :0] @ p["Z"],
        {"W": W, "Z": weight(0, 6)},
        {"W": "", "Z": "no weights"},
    ),
    "bfloat16": (
        lambda p, x: (x.astype(jnp.bfloat16) @ p["W"].astype(jnp.bfloat16)).astype(jnp.float32),
        {"W": W},
        {"W": ""},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:no tile computes")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_are_found_and_computed(name: str) -> None:
    function, params, expected = FUNCTIONS[name]
    chip = analog(function, params, FINE, X)
    table = chip.coverage
    assert dict(zip(table["layer"], table["reason"], strict=True)) == expected
    assert set(chip.layers) == {layer for layer, reason in expected.items() if not reason}
    digital = np.concatenate([np.asarray(function(params, x[None])) for x in X])
    found = np.asarray(chip.apply(chip.program(params, jax.random.key(0)), X))
    tolerance = 0.02 if name == "bfloat16" else 1e-4
    np.testing.assert_allclose(found, digital, atol=tolerance * np.abs(digital).max())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_replaced_leaves_every_bit(name: str) -> None:
    function, params, _ = FUNCTIONS[name]
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, params))

    def of_leaves(leaves: Any, x: Any) -> Any:
        return function(jax.tree.unflatten(treedef, leaves), x)

    program = jax.make_jaxpr(of_leaves)(leaves, X)
    (found,) = jaxprs.run(program, leaves, X, lambda product, x, w: None)
    np.testing.assert_array_equal(found, of_leaves(leaves, X))


def test_derivative_rules_without_products_stay() -> None:
    def function(params: Any, x: Any) -> Any:
        return doubled(x @ params)

    chip = analog(function, W, FINE, X)
    weights = chip.program(W, jax.random.key(0))
    found = jax.grad(lambda x: chip.apply(weights, x).sum())(jnp.asarray(X))
    np.testing.assert_allclose(found, np.broadcast_to(5 * W.sum(1), X.shape), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["adc", "wnoise"])
def test_networks_of_16_bits_keep_their_type(dtype: str, name: str) -> None:
    net = linen.Sequential([linen.Dense(16, dtype=dtype), linen.relu, linen.Dense(3, dtype=dtype)])
    params = net.init(jax.random.key(0), X)
    noise = WeightNoise(1e-4, drawn="per_mvm")
    chip = analog(net.apply, params, FINE if name == "adc" else Profile(wnoise=noise), 12 * X)
    found = chip.apply(chip.program(params, jax.random.key(0)), 12 * X)
    assert found.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(
        np.asarray(found, np.float32), np.asarray(net.apply(params, 12 * X), np.float32), atol=0.2
    )


BATCHES: dict[str, Any] = {
    "mean": lambda p, x: (x - x.mean(0)) @ p["W"],
    "sum": lambda p, x: x @ p["W"] / jnp.abs(x).max(),
}


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("profile", [Profile(), FINE], ids=["ideal", "adc"])
def test_samples_that_depend_on_their_batch_are_refused(case: str, profile: Profile) -> None:
    with pytest.raises(ValueError, match="depend on the other images of its batch"):
        analog(BATCHES[case], {"W": W}, profile, X)
    training = nnx.Sequential(
        nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    )
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        analog(training, None, profile, X)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: jnp.squeeze(x @ p["W"]),
        lambda p, x: {"logits": x @ p["W"]},
        lambda p, x: (x @ p["W"]).sum(-1),
    ],
)
def test_what_is_not_logits_is_refused(function: Any) -> None:
    with pytest.raises(ValueError, match=r"must give logits \[batch, classes\]"):
        analog(function, {"W": W}, FINE, X)


class Net(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.relu(linen.GroupNorm(2)(linen.Conv(8, (3, 3), strides=2)(x)))
        x = x.reshape(len(x), -1, 8)
        x = x + linen.MultiHeadDotProductAttention(2)(x)
        return linen.Dense(5)(x.mean(1))


def test_linen_with_attention() -> None:
    images = RNG.normal(size=(4, 8, 8, 3)).astype(np.float32)
    net = Net()
    params = net.init(jax.random.key(0), images)
    chip = analog(net.apply, params, FINE, images)
    attention = "params.MultiHeadDotProductAttention_0"
    assert chip.layers == (
        "params.Conv_0.kernel",
        *(f"{attention}.{name}.kernel" for name in ("query", "key", "value", "out")),
        "params.Dense_0.kernel",
    )
    digital = chip.coverage[chip.coverage["reason"] == "two activations"]
    assert digital["calls"].tolist() == [2]
    _close_to(chip, params, net.apply(params, images), images)


def test_nnx_modules() -> None:
    model = ResNet18(num_classes=4, width=4, rngs=nnx.Rngs(0))
    model.eval()
    images = RNG.normal(size=(2, 16, 16, 3)).astype(np.float32)
    chip = analog(model, None, FINE, images)
    assert len(chip.layers) == 21
    assert (chip.coverage["place"] == "analog").all()
    _close_to(chip, chip.params, model(jnp.asarray(images)), images)
    with pytest.raises(ValueError, match="give None as params"):
        analog(model, {}, FINE, images)


class Recurrent(nnx.Module):
    """Counts the draws of its random stream, though its initial state is 0."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.rnn = nnx.RNN(nnx.SimpleCell(4, 5, rngs=rngs))
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.rnn(x)[:, -1])


@pytest.mark.filterwarnings("ignore:no tile computes rnn.cell.dense_h.kernel")
def test_a_state_whose_counts_change_within_a_call() -> None:
    model = Recurrent()
    graph, state = nnx.split(model)
    images = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    chip = analog(lambda state, x: nnx.merge(graph, state)(x), state, FINE, images)
    _close_to(chip, chip.params, model(jnp.asarray(images)), images)


def test_a_torch_vit_through_to_jax() -> None:
    module, shape = made("ViT")
    images = RNG.normal(size=(2, *shape)).astype(np.float32).transpose(0, 2, 3, 1)
    logits_fn, params = bridge.to_jax(module, images)
    profile = bridge.PROFILES["adc+wnoise+pcm"]
    chip = analog(logits_fn, params, profile, images)
    expected = bridge.coverage(module, images)
    assert chip.coverage.query("place == 'analog'")["macs"].sum() == (
        expected.query("place == 'analog'")["macs"].sum()
    )
    weights = chip.program(params, jax.random.key(0))
    assert np.isfinite(np.asarray(chip.apply(weights, images))).all()
    _close_to(analog(logits_fn, params, FINE, images), params, logits_fn(params, images), images)


def _close_to(chip: Chip, params: Any, digital: Any, images: np.ndarray) -> None:
    found = chip.apply(chip.program(params, jax.random.key(0)), images)
    np.testing.assert_allclose(found, digital, atol=1e-3 * float(jnp.abs(digital).max()))


def test_a_tied_weight_is_one_weight_on_the_chip() -> None:
    def function(params: Any, ids: Any) -> Any:
        h = jnp.tanh(params["E"][ids].mean(1) @ params["W"])
        return h @ params["E"].T

    params = {"E": weight(30, 6), "W": W}
    ids = np.arange(8).reshape(2, 4)
    chip = analog(function, params, bridge.PROFILES["pcm"], ids)
    weights = chip.program(params, jax.random.key(0))
    expected = function(weights.params, ids)
    np.testing.assert_allclose(chip.apply(weights, ids), expected, rtol=1e-5)
    assert not np.allclose(weights.params["E"], params["E"], atol=1e-3)
    with pytest.raises(ValueError, match="parameter W is multiplied in two arrangements"):
        analog(lambda p, x: x @ p["W"] @ p["W"].T, {"W": W}, FINE, X)


def grouped(params: Any, x: Any) -> Any:
    x = x.reshape(-1, 3, 1, 2)
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, params["G"], (1, 1), "SAME", feature_group_count=2, dimension_numbers=dimensions
    )
    return x.reshape(len(x), -1) @ params["W"]


def test_what_no_tile_computes_is_told() -> None:
    params = {"G": weight(2, 1, 1, 4), "W": weight(12, 3)}
    with pytest.warns(
        UserWarning, match=r"G \(a convolution of 2 groups\): 40 % of the work stays"
    ):
        chip = analog(grouped, params, FINE, X)
    assert chip.layers == ("W",)
    with pytest.raises(ValueError, match="no tile computes G"):
        analog(grouped, params, FINE, X, strict=True)
    quiet = analog(grouped, params, FINE, X, digital_layers=["G"], strict=True)
    assert quiet.coverage["reason"].tolist() == ["named in digital_layers", ""]
    with pytest.raises(ValueError, match=r"digital_layers names what is not there: H; .* G, W"):
        analog(grouped, params, FINE, X, digital_layers=["H"])
    standardised = {"W": W, "V": V}
    with pytest.warns(UserWarning, match="W .the weight is computed from parameters"):
        analog(lambda p, x: x @ (p["W"] - p["W"].mean()) @ p["V"], standardised, FINE, X)
    with pytest.warns(UserWarning, match="a product .a constant of the function"):
        analog(lambda p, x: x @ jnp.asarray(W) @ p["V"], {"V": V}, FINE, X)


def of_experts(params: Any, x: Any) -> Any:
    sizes = jnp.array([len(x), 0])
    return jax.lax.ragged_dot(x, params["W"], sizes)


def in_a_while(params: Any, x: Any) -> Any:
    def of_one(x: Any) -> Any:
        return jax.lax.while_loop(
            lambda h: jnp.abs(h).max() < 100, lambda h: h @ params["W"] + 1, x
        )

    return jax.vmap(of_one)(x)


REFUSED: dict[str, tuple[Any, Any, Any, Any, str]] = {
    "no product": (lambda p, x: x * p["w"], {"w": W[0]}, FINE, X, "no matrix product or conv"),
    "closed over": (lambda p, x: x @ jnp.asarray(W), {}, FINE, X, "a constant of the function"),
    "whole numbers": (
        lambda p, x: x @ p["W"], {"W": W.astype(np.int8)}, FINE, X, "W has weights of type int8"),
    "no rule for vmap": (of_experts, {"W": np.stack([W, W])}, FINE, X, r"operations \(ragged_dot"),
    "in a while": (in_a_while, {"W": W}, FINE, X, "inside of while, whose program"),
    "not finite": (lambda p, x: x @ p["W"], {"W": W * np.nan}, FINE, X, "not finite"),
    "no batch": (lambda p, x: x @ p["W"], {"W": W}, FINE, X[0], r"must be \[batch, ...\]"),
    "no profile": (lambda p, x: x @ p["W"], {"W": W}, "adc", X, "must be a bridge.Profile"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case: str) -> None:
    function, params, profile, images, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        analog(function, params, profile, images)


def test_images_of_another_kind_of_numbers_are_refused() -> None:
    def function(params: Any, x: Any) -> Any:
        x = x / 255 if x.dtype == jnp.uint8 else x
        return x @ params

    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    floats = (pixels / 255).astype(np.float32)
    large = pixels.astype(np.int32) + 256
    for own, other in ((pixels, floats), (floats, pixels), (pixels, large)):
        chip = analog(function, W, bridge.PROFILES["adc"], own)
        weights = chip.program(W, jax.random.key(0))
        told = rf"images are {other.dtype}, and the chip was made for {own.dtype}"
        for call in (chip.apply, chip.clipped_share, partial(layer_report, chip)):
            with pytest.raises(ValueError, match=told):
                call(weights, other)
        wider = own.astype(np.float64 if own is floats else np.int32)
        np.testing.assert_array_equal(chip.apply(weights, wider), chip.apply(weights, own))


def test_samples_come_to_a_chip_in_its_own_type() -> None:
    """A source gives float32 images and int32 or int64 token ids alone."""

    def function(params: Any, x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = jax.nn.one_hot(x, 6).sum(1)
        return jnp.abs(x) @ params

    signals = RNG.normal(size=(4, 6)).astype(np.float32)
    tokens = RNG.integers(0, 6, (4, 3))
    cases: list[tuple[np.ndarray, Any]] = [
        (tokens, kind) for kind in (np.uint16, np.uint32, np.int8, np.int64)
    ]
    for given, kind in [*cases, (signals, np.complex64), (signals, jnp.bfloat16)]:
        chip = analog(function, W, Profile(), given.astype(kind))
        weights = chip.program(W, jax.random.key(0))
        found = predict(chip, weights, (given, np.zeros(4, int)), batch_size=4)
        wanted = chip.apply(weights, given.astype(kind))
        np.testing.assert_array_equal(np.stack(found["logits"]), wanted)
    with pytest.raises(ValueError, match="images are int64, and the chip was made for int8"):
        analog(function, W, Profile(), tokens.astype(np.int8)).require_images(tokens + 128)


def test_a_chip_refuses_what_is_not_its_own() -> None:
    def function(params: Any, x: Any) -> Any:
        return x @ params["W"]

    chip = analog(function, {"W": W}, Profile(memory=PCM()), X)
    weights = chip.program({"W": W}, jax.random.key(0))
    with pytest.raises(ValueError, match="params of other shapes"):
        chip.program({"W": V}, jax.random.key(0))
    with pytest.raises(ValueError, match="params of another structure"):
        chip.program([W], jax.random.key(0))
    with pytest.raises(ValueError, match=r"weights must be what chip\.program returns"):
        chip.apply({"W": W}, X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images of shape \(5,\); the chip was made for \(6,\)"):
        chip.apply(weights, X[:, :5])
    with pytest.raises(ValueError, match="one for each of 4 images"):
        chip.apply(weights, X, indices=jnp.arange(3))
    with pytest.raises(ValueError, match=r"whole numbers from 0 to 2\*\*32 - 1"):
        chip.apply(weights, X, indices=np.array([0, 1, 2, 2**32]))
    several = jax.vmap(chip.program, (None, 0))({"W": W}, jax.random.split(jax.random.key(0), 4))
    with pytest.raises(ValueError, match=r"one at a time, as with jax\.vmap"):
        chip.apply(several, X)
    with pytest.raises(ValueError, match="cannot be pickled"):
        pickle.dumps(chip)
    assert copy.deepcopy(chip) is chip
    with pytest.raises(ValueError, match=r"several parameters have the path a\.b"):
        analog(lambda p, x: x @ p["a.b"] @ p["a"]["b"], {"a.b": W, "a": {"b": V}}, FINE, X)


def test_arrays_that_are_closed_over_may_not_change() -> None:
    held = {"scale": jnp.ones(6)}

    def function(params: Any, x: Any) -> Any:
        return (x * held["scale"]) @ params["W"]

    chip = analog(function, {"W": W}, Profile(), X)
    chip.program({"W": 2 * W}, jax.random.key(0))
    held["scale"] = jnp.full(6, 3.0)
    with pytest.raises(ValueError, match="put them into params, or make the chip anew"):
        chip.program({"W": W}, jax.random.key(0))


def test_neither_torch_nor_aihwkit_is_needed() -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["aihwkit"] = None
import jax, numpy as np, bridge
w = np.ones((6, 3), np.float32)
chip = bridge.analog(lambda p, x: x @ p, w, bridge.PROFILES["adc+wnoise+pcm"], w.T)
print(chip.apply(chip.program(w, jax.random.key(0)), w.T).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(3, 3)", done.stderr


def apart(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["w"])[:, None] - p["v"].T


ENTRIES = np.argwhere(np.ones((6, 3)))  # of a sparse array that happens to be full

WRITTEN_OUT: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "product": lambda p, x: (jnp.tanh(x @ p["w"])[:, :, None] * p["v"]).sum(1),
    "of a sample": lambda p, x: jax.vmap(
        lambda one: (jnp.tanh(one @ p["w"])[:, None] * p["v"] + p["v"]).mean(0)
    )(x),
    "running sums": lambda p, x: jnp.cumsum(jnp.tanh(x @ p["w"])[:, :, None] * p["v"], 1)[:, -1],
    "a pool": lambda p, x: jax.lax.reduce_window(
        jnp.tanh(x @ p["w"])[:, :, None] * p["v"], 0.0, jax.lax.add, (1, 6, 1), (1, 1, 1), "VALID"
    )[:, 0],
    "sparse": lambda p, x: (
        (sparse.BCOO((p["v"].reshape(-1), ENTRIES), shape=(6, 3)).T @ jnp.tanh(x @ p["w"]).T).T
    ),
    "sparse, from the left": lambda p, x: (
        jnp.tanh(x @ p["w"]) @ sparse.BCOO((p["v"].reshape(-1), ENTRIES), shape=(6, 3))
    ),
    "added up by place": lambda p, x: (
        jax.ops.segment_sum(
            (jnp.tanh(x @ p["w"])[:, ENTRIES[:, 0]] * p["v"].reshape(-1)).T, ENTRIES[:, 1], 3
        ).T
    ),
    "added up by place, of a sample": lambda p, x: jax.vmap(
        lambda one: (
            jnp.zeros(3)
            .at[ENTRIES[:, 1]]
            .add(jnp.tanh(one @ p["w"])[ENTRIES[:, 0]] * p["v"].reshape(-1))
        )
    )(x),
    "distance": lambda p, x: -(apart(p, x) ** 2).sum(-1),
    "by itself": lambda p, x: (lambda d: -jnp.sqrt((d * d).sum(-1)))(apart(p, x)),
    "Manhattan": lambda p, x: -jnp.abs(apart(p, x)).sum(-1),
}
SCALES: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "normalisation": lambda p, x: (
        (x @ p["w"]).reshape(len(x), 2, 3)
        * (jax.lax.rsqrt((x**2).sum(1))[:, None, None] * p["v"][0])
    ).mean(1),
    "scale": lambda p, x: (x @ p["w"])[:, :3] * p["v"].sum(0),
    "scale of what is added up by place": lambda p, x: jax.vmap(
        lambda one: jax.ops.segment_sum(
            (one @ p["w"]).reshape(2, 3) * p["v"][0], jnp.zeros(2, int), 1
        )[0]
    )(x),
    "scale of what goes to places": lambda p, x: (
        jnp.zeros((len(x), 3))
        .at[:, jnp.arange(3)]
        .add((x @ p["w"])[:, :3] * p["v"][0], unique_indices=True)
    ),
    "scale of a sum": lambda p, x: ((x @ p["w"])[:, :, None] * p["v"]).sum(-1),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_products_that_are_written_out_are_told_and_listed(name: str) -> None:
    function, params = WRITTEN_OUT[name], {"w": W, "v": V}
    with pytest.warns(UserWarning, match=r"no tile computes v \(a sum that is written out\): 33.3"):
        made = analog(function, params, Profile(), X)
    row = made.coverage.iloc[-1]
    assert (row["layer"], row["macs"], row["place"]) == ("v", 18, "digital")
    with pytest.raises(ValueError, match="a sum that is written out"):
        analog(function, params, Profile(), X, strict=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SCALES)
def test_scales_are_no_products_that_are_written_out(name: str) -> None:
    made = analog(SCALES[name], {"w": W, "v": V}, Profile(), X)
    assert made.coverage["layer"].tolist() == ["w"]


def filtered(p: Any, x: jax.Array) -> jax.Array:
    spectrum = jnp.fft.rfft(x @ p["w"]) * p["v"] * p["gain"]
    return jnp.fft.irfft(spectrum, n=4)


def test_filters_in_the_fourier_domain_are_told_and_listed() -> None:
    params = {"w": jnp.ones((6, 4)), "v": jnp.arange(3) * 1j + 1, "gain": jnp.float32(2)}
    images = np.ones((2, 6), np.float32)
    with pytest.warns(UserWarning, match=r"no tile computes v \(a filter of complex values\)"):
        made = analog(filtered, params, Profile(), images)
    assert made.coverage["layer"].tolist() == ["w", "v"]
    row = made.coverage.iloc[-1]
    assert (row["operator"], row["macs"], row["place"]) == ("mul", 3, "digital")
    with pytest.raises(ValueError, match="a filter of complex values"):
        analog(filtered, params, Profile(), images, strict=True)
    named = analog(filtered, params, Profile(), images, digital_layers=["v"], strict=True)
    assert named.coverage["reason"].tolist() == ["", "named in digital_layers"]
