"""The flip probability in one call: exact where the model is linear, draws, several noises."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxcurv.flips import flip_probability
from jaxcurv.frames import frame_of
from jaxcurv.gaussian_flips import gaussian_flip_probability
from jaxcurv.margins import Moments, margin_moments, margin_table
from tests.jaxcurv.test_margins import (
    CONVNET,
    IMAGES,
    INDICES,
    LINEAR,
    convnet,
    linear,
    noise,
    source,
)

BINARY = {name: leaf[..., :2] / 4 for name, leaf in LINEAR.items()}  # two classes: exact


def binary_noise() -> Moments:
    moments = noise(BINARY, 3)
    return Moments(moments.mean, {name: leaf / 30 for name, leaf in moments.variance.items()})


def test_for_two_classes_of_a_linear_model_it_is_the_share_of_drawn_chips() -> None:
    moments = binary_noise()
    table = flip_probability(linear, source(), params=BINARY, moments=moments)
    x = IMAGES.reshape(11, -1).astype(np.float64)
    digital = x @ BINARY["w"] + BINARY["b"]
    rng, chips = np.random.default_rng(0), 4000
    draw = {
        name: BINARY[name] + moments.mean[name] + np.sqrt(moments.variance[name])
        * rng.normal(size=(chips, *BINARY[name].shape))
        for name in BINARY
    }  # fmt: skip
    logits = np.einsum("sp,npc->nsc", x, draw["w"]) + draw["b"][:, None]
    flipped = (logits.argmax(-1) != digital.argmax(-1)).mean(0)
    assert 0.1 < flipped.mean() < 0.9
    np.testing.assert_allclose(table["probability"], flipped, atol=5 * 0.5 / chips**0.5)
    assert list(table) == [
        *("index", "prediction", "runner_up", "margin", "shift", "variance", "probability"),
    ]
    np.testing.assert_array_equal(table["index"], INDICES)
    np.testing.assert_array_equal(table["prediction"], digital.argmax(-1))
    assert table.dtypes.astype(str).to_dict() == {
        "index": "int64", "prediction": "int32", "runner_up": "int32", "margin": "float64",
        "shift": "float64", "variance": "float64", "probability": "float64",
    }  # fmt: skip


def test_images_need_no_labels() -> None:
    moments = binary_noise()
    labelled, alone = (
        flip_probability(linear, given, params=BINARY, moments=moments)
        for given in ((IMAGES, np.zeros(11, int)), IMAGES)
    )
    pd.testing.assert_frame_equal(alone, labelled)


def test_it_is_the_gradient_at_the_mean_weights() -> None:
    """The long way round, by hand: margins, mean weights, margins there, formula."""
    moments = noise(CONVNET, 4)
    params = {name: CONVNET[name] + moments.mean[name] for name in CONVNET}
    zeros = {name: np.zeros_like(leaf) for name, leaf in CONVNET.items()}
    still = {"n": Moments(zeros, zeros)}
    digital = margin_table(convnet, source(), params=CONVNET, noises=still)
    samples = [
        one | {"label": int(label)}
        for one, label in zip(source(), digital["prediction"], strict=True)
    ]
    spread = {"n": Moments(zeros, moments.variance)}
    there = margin_table(convnet, samples, params=params, noises=spread, of="label")
    table = flip_probability(
        convnet, source(), params=CONVNET, moments=moments, added_variance=0.5, unshifted=True
    )
    shift = (there["margin"] - digital["margin"]).to_numpy(np.float64)
    np.testing.assert_allclose(table["margin"], digital["margin"], rtol=1e-6)
    np.testing.assert_allclose(table["shift"], shift, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table["variance"], there["n_variance"] + 0.5, rtol=1e-6)
    expected = gaussian_flip_probability(table["margin"], table["shift"], table["variance"])
    np.testing.assert_array_equal(table["probability"], expected)
    around = margin_table(convnet, source(), params=CONVNET, noises=spread)["n_variance"]
    variance = around.to_numpy().astype(np.float64) + 0.5
    expected = gaussian_flip_probability(table["margin"], np.zeros(11), variance)
    np.testing.assert_allclose(table["unshifted"], expected, rtol=1e-6)


def test_several_by_name_are_each_alone_and_share_their_passes() -> None:
    one, two = noise(CONVNET, 5), noise(CONVNET, 6)
    passes: list[str] = []

    def once(name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        passes.append(name)
        return make()

    added = {"adc+pcm": np.arange(11.0), "adc": np.ones(11)}
    table = flip_probability(
        convnet,
        source(),
        params=CONVNET,
        moments={"pcm": one, "adc+pcm": one, "wnoise": two, "adc": None},
        added_variance=added,
        once=once,
    )
    assert passes == ["digital", "mean-pcm", "mean-wnoise"]
    assert table["noise"].unique().tolist() == ["pcm", "adc+pcm", "wnoise", "adc"]
    for name, moments in (("pcm", one), ("adc+pcm", one), ("wnoise", two), ("adc", None)):
        alone = flip_probability(
            convnet, source(), params=CONVNET, moments=moments, added_variance=added.get(name)
            if name in added else None if moments else 0.0,
        )  # fmt: skip
        mine = table[table["noise"] == name].drop(columns="noise").reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, alone)
    exact = table[table["noise"] == "adc"]
    assert (exact["shift"] == 0).all()
    assert (exact["variance"] == 1).all()


def test_finished_passes_are_taken_over() -> None:
    kept: dict[str, pd.DataFrame] = {}

    def once(name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        kept[name] = kept[name] if name in kept else make()
        return kept[name]

    settings: dict[str, Any] = {"params": LINEAR, "moments": noise(LINEAR, 2), "once": once}
    first = flip_probability(linear, source(), **settings)
    kept["mean-weights"] = kept["mean-weights"].assign(margin=-100.0)
    second = flip_probability(linear, source(), **settings)
    assert (second["shift"] < -100).all()
    assert (first["shift"] > -100).all()


def test_the_added_variance_is_joined_by_index() -> None:
    settings: dict[str, Any] = {"params": LINEAR, "moments": noise(LINEAR, 2)}
    variance = np.linspace(1, 50, 11)
    by_place = flip_probability(linear, source(), added_variance=variance, **settings)
    rows = pd.DataFrame({"index": [*INDICES, 1000], "variance": [*variance, 7.0]})
    shuffled = rows.sample(frac=1, random_state=0)
    by_index = flip_probability(linear, source(), added_variance=shuffled, **settings)
    pd.testing.assert_frame_equal(by_index, by_place)
    none = flip_probability(linear, source(), **settings)
    np.testing.assert_allclose(by_place["variance"] - none["variance"], variance, rtol=1e-12)


@pytest.mark.parametrize("wrong", ["order", "weights"])
def test_added_variance_of_other_samples_or_another_model_is_refused(wrong: str) -> None:
    """By the margins beside it: arrays have no other index than their positions."""
    params, settings = LINEAR, {"moments": noise(LINEAR, 2)}
    margins = flip_probability(linear, source(), params=LINEAR, **settings)["margin"]
    table = pd.DataFrame({"index": INDICES, "variance": 1.0, "margin": margins * (1 + 1e-4)})
    flip_probability(linear, source(), params=LINEAR, added_variance=table, **settings)
    if wrong == "order":
        table["margin"] = np.roll(table["margin"], 1)
    else:
        params = {name: 2 * leaf for name, leaf in LINEAR.items()}
    with pytest.raises(ValueError, match="of other samples, or of a model with other weights: at"):
        flip_probability(linear, source(), params=params, added_variance=table, **settings)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    settings: dict[str, Any] = {"params": CONVNET, "moments": noise(CONVNET, 5)}
    whole = flip_probability(convnet, source(), **settings)
    part = flip_probability(convnet, source()[2:9], batch_size=3, **settings)
    pd.testing.assert_frame_equal(part, whole[2:9].reset_index(drop=True))


MOMENTS = noise(LINEAR, 2)
TABLE = pd.DataFrame({"index": INDICES, "variance": np.ones(11)})
OF_OTHERS = frame_of(pa.table({"index": INDICES + 100, "variance": np.ones(11)}))
UNNAMED = TABLE.rename(columns={"variance": "v"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing is noisy: give moments, added_variance or both"),
        ({"moments": {}}, r"moments are jaxcurv.Moments.*got \{\}"),
        ({"moments": MOMENTS.mean}, "moments are jaxcurv.Moments.*got ndarray under 'b'"),
        ({"moments": [MOMENTS]}, "moments are jaxcurv.Moments.*got list"),
        ({"moments": {"a": None}}, "nothing is noisy in a: give moments, or leave it out"),
        ({"moments": {"a": MOMENTS}, "added_variance": 1.0}, "need the added variance by name"),
        ({"moments": {"a": MOMENTS}, "added_variance": {"b": 1}}, "added_variance is given for b"),
        ({"added_variance": -1.0}, "^added_variance must be finite and >= 0; got -1.0"),
        (
            {"moments": {"a": MOMENTS}, "added_variance": {"a": [1.0] * 10 + [-2.0]}},
            r"^added_variance\['a'\] must be finite and >= 0; got -2.0",
        ),
        ({"added_variance": [np.nan] * 11}, "must be finite"),
        ({"added_variance": np.ones(10)}, r"must be real numbers \[11\] or one number; got .*10"),
        ({"added_variance": "much"}, "must be real numbers"),
        (
            {"added_variance": TABLE.set_index("index")["variance"]},
            "give its table, which is joined",
        ),
        # By position it would be taken for the samples of another table, or another order.
        ({"added_variance": TABLE["variance"]}, r"is a column.*give its table.*or \.to_numpy"),
        ({"added_variance": OF_OTHERS["variance"]}, "is a column, whose rows do not say"),
        (
            {
                "moments": {"a": MOMENTS},
                "added_variance": {"a": TABLE[::-1].reset_index().variance},
            },
            r"^added_variance\['a'\] is a column",
        ),
        ({"added_variance": UNNAMED}, "without the column variance"),
        ({"added_variance": pd.concat([TABLE, TABLE])}, "has an index twice"),
        ({"added_variance": TABLE[:9]}, "lacks 2 samples, the first of index 47"),
    ],
)
def test_noises_that_do_not_fit_are_refused_before_any_pass(settings: Any, message: str) -> None:
    class Indexed(list[Any]):
        indices = INDICES

    def never(name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        raise AssertionError(name)

    with pytest.raises(ValueError, match=message):
        flip_probability(linear, Indexed(source()), params=LINEAR, once=never, **settings)


def test_rows_that_the_added_variance_lacks_are_named() -> None:
    with pytest.raises(ValueError, match="lacks 2 samples, the first of index 47"):
        flip_probability(linear, source(), params=LINEAR, added_variance=TABLE[:9])


def test_moments_of_other_weights_are_refused() -> None:
    odd = Moments(MOMENTS.mean | {"b": np.zeros(3)}, MOMENTS.variance)
    with pytest.raises(ValueError, match=r"the mean of weights has shape \(3,\) at \['b'\]"):
        flip_probability(linear, source(), params=LINEAR, moments=odd)


@pytest.mark.parametrize("which", ["mean", "variance"])
def test_moments_of_weights_that_have_changed_since_are_refused(which: str) -> None:
    zeros = {name: np.zeros_like(leaf) for name, leaf in LINEAR.items()}
    one = {"mean": zeros, "variance": zeros} | {which: {**zeros, "w": 0.1 + zeros["w"]}}
    moments = Moments(**one, weights=LINEAR)
    table = flip_probability(linear, source(), params=LINEAR, moments=moments)
    trained = {**LINEAR, "w": LINEAR["w"] + np.eye(*LINEAR["w"].shape, dtype=np.float32) / 4}
    with pytest.raises(
        ValueError, match=r"weights are of other weights: \['w'\] differs by .*0.25"
    ):
        flip_probability(linear, source(), params=trained, moments=moments)
    exact = {**LINEAR, "b": LINEAR["b"] + 1}  # no noise, hence no moments
    assert len(flip_probability(linear, source(), params=exact, moments=moments)) == len(table)
    coarse = {
        name: jnp.asarray(leaf, jnp.bfloat16).astype(leaf.dtype) for name, leaf in LINEAR.items()
    }
    assert len(flip_probability(linear, source(), params=coarse, moments=moments)) == len(table)


def straight_through(step: float) -> Callable:
    def rounded(x: jax.Array) -> jax.Array:
        return x + jax.lax.stop_gradient(jnp.round(x / step) * step - x)

    return rounded


@jax.custom_vjp
def signs(x: jax.Array) -> jax.Array:
    return jnp.sign(x)


signs.defvjp(lambda x: (jnp.sign(x), x), lambda x, g: (g,))


JUMPING: dict[str, Callable] = {
    "logits in steps": lambda p, x: straight_through(2.0)(linear(p, x)),
    "units in steps": lambda p, x: jnp.tanh(straight_through(4.0)(linear(p, x))),
    "signs with a rule of their own": lambda p, x: linear(p, x) * 0.1 + 3 * signs(linear(p, x)),
    "a threshold": lambda p, x: linear(p, x) + 9.0 * (linear(p, x) > 1),
}
SMOOTH: dict[str, Callable] = {
    "steps far below the noise": lambda p, x: straight_through(1e-3)(linear(p, x)),
    "a rounded input": lambda p, x: linear(p, jnp.round(x * 4) / 4),
    "a bend": lambda p, x: jnp.maximum(linear(p, x), 0.1 * linear(p, x)),
}


def drawn_share(model: Callable, moments: Moments) -> np.ndarray:
    """Share of drawn weights that flip each sample's prediction."""
    rng, share = np.random.default_rng(0), []
    digital = np.asarray(model(BINARY, IMAGES)).argmax(1)
    run = jax.jit(model)
    for _ in range(2000):
        drawn = {
            name: (w + moments.mean[name] + np.sqrt(moments.variance[name])
            * rng.normal(size=w.shape)).astype(np.float32)
            for name, w in BINARY.items()
        }  # fmt: skip
        share.append(np.asarray(run(drawn, IMAGES)).argmax(1) != digital)
    return np.mean(share, axis=0)


@pytest.mark.parametrize("model", JUMPING.values(), ids=JUMPING)
def test_a_model_that_jumps_under_noise_is_warned_of(model: Callable) -> None:
    moments = binary_noise()
    with pytest.warns(UserWarning, match="noise of the weights moves .* otherwise than .*rounds"):
        table = flip_probability(model, source(), params=BINARY, moments=moments)
    # Four standard errors of 2,000 draws are at most 0.045.
    assert np.max(np.abs(table["probability"] - drawn_share(model, moments))) > 0.045
    with pytest.warns(UserWarning, match="otherwise than their gradients say"):
        margin_moments(model, IMAGES, params=BINARY, noises={"n": moments})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("model", SMOOTH.values(), ids=SMOOTH)
def test_rounding_that_noise_does_not_meet_is_not_warned_of(model: Callable) -> None:
    moments = binary_noise()
    table = flip_probability(model, source(), params=BINARY, moments=moments)
    exact = model is not SMOOTH["a bend"]
    if exact:  # linear in the weights, or nearly
        share = drawn_share(model, moments)
        np.testing.assert_allclose(table["probability"], share, atol=0.05)
    margin_moments(model, IMAGES, params=BINARY, noises={"n": moments})


def test_a_part_behind_stop_gradient_is_warned_of() -> None:
    def model(params: Any, images: jax.Array) -> jax.Array:
        logits = linear(params, images)
        return logits + jax.lax.stop_gradient(logits)

    with pytest.warns(UserWarning, match="behind stop_gradient, which no derivative sees"):
        flip_probability(model, source(), params=BINARY, moments=binary_noise())
