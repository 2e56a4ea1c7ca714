"""Routing curves and thresholds against brute force, and live batches against the curves."""

from copy import deepcopy

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from torch import nn

import bridge
from bridge import Router
from bridge.analysis import logit_scores
from bridge.routing import Costs, choose_threshold, routed_at, routing_curve
from bridge.routing.curves import mean_energy, routing_baselines

SAMPLES = 23


@pytest.fixture(scope="module", params=["one score", "a score a chip"])
def data(request):
    """Score, digital [samples], analog [2, samples]; scores tie, and chips may have their own."""
    rng = np.random.default_rng(0)
    shape = (2, SAMPLES) if request.param == "a score a chip" else SAMPLES
    score = np.round(rng.random(shape), 1)
    return score, rng.random(SAMPLES) < 0.8, rng.random((2, SAMPLES)) < 0.6


def test_curve_is_that_of_routing_the_samples_one_by_one(data):
    score, digital, analog = data
    indices = np.random.default_rng(1).permutation(SAMPLES) * 3
    curve = routing_curve(score, digital, analog, points=200, indices=indices)
    assert curve["fraction"].tolist() == [count / SAMPLES for count in range(SAMPLES + 1)]
    for count, row in zip(range(SAMPLES + 1), curve.to_dict("records"), strict=True):
        accuracies = []
        for chip, one in zip(analog, np.broadcast_to(score, analog.shape), strict=True):
            order = sorted(range(SAMPLES), key=lambda n, one=one: (-one[n], indices[n]))
            right = chip.copy()
            right[order[:count]] = digital[order[:count]]
            accuracies.append(right.mean())
        assert row["accuracy"] == pytest.approx(np.mean(accuracies))
        assert (row["accuracy_min"], row["accuracy_max"]) == pytest.approx(
            (min(accuracies), max(accuracies))
        )
        assert row["oracle_accuracy"] >= row["accuracy"] - 1e-12
    assert curve["accuracy"].iloc[0] == pytest.approx(analog.mean())
    assert curve["accuracy"].iloc[-1] == pytest.approx(digital.mean())
    np.testing.assert_allclose(curve["energy"], 0.1 + 0.9 * curve["fraction"])


def test_random_routing_is_the_mean_over_random_scores():
    rng = np.random.default_rng(2)
    digital, analog = rng.random(60) < 0.9, rng.random(60) < 0.6
    many = routing_curve(rng.random((3000, 60)), digital, np.tile(analog, (3000, 1)), points=4)
    expected = routing_curve(rng.random(60), digital, analog, points=4)["random_accuracy"]
    np.testing.assert_allclose(many["accuracy"], expected, atol=0.005)


def test_oracle_rescues_first_and_spoils_last():
    digital = np.array([True, True, False, False, True])
    analog = np.array([False, True, True, False, False])
    curve = routing_curve(np.zeros(5), digital, analog, points=6)
    np.testing.assert_allclose(curve["oracle_accuracy"], [0.4, 0.6, 0.8, 0.8, 0.8, 0.6])


def test_thresholds_of_the_curve_route_as_many(data):
    score, digital, analog = data
    if np.ndim(score) == 2:
        assert routing_curve(score, digital, analog)["threshold"].isna().all()
        return
    distinct = score + 1e-3 * np.arange(SAMPLES)
    for row in routing_curve(distinct, digital, analog).to_dict("records"):
        found = routed_at(row["threshold"], distinct, digital, analog)
        assert (found.fraction, found.accuracy, found.energy) == pytest.approx(
            (row["fraction"], row["accuracy"], row["energy"])
        )


def test_chosen_threshold_is_the_highest_that_suffices(data):
    score, digital, analog = data
    possible = sorted({np.inf, *np.ravel(score)}, reverse=True)
    accuracies = [routed_at(one, score, digital, analog).accuracy for one in possible]
    for target in np.linspace(0, max(accuracies), 20):
        enough = [one for one, a in zip(possible, accuracies, strict=True) if a >= target - 1e-12]
        assert choose_threshold(score, digital, analog, target) == enough[0]
    with pytest.raises(ValueError, match=f"the best is {max(accuracies):.4f}: lower the target"):
        choose_threshold(score, digital, analog, max(accuracies) + 0.01)


def test_a_sample_of_infinite_score_is_routed_by_every_threshold():
    score, digital, analog = [np.inf, 0.2, 0.1], [False, True, True], [True, True, False]
    assert routed_at(np.inf, score, digital, analog).fraction == pytest.approx(1 / 3)
    # The chip alone would reach 0.6, but no threshold leaves the first sample to it.
    assert choose_threshold(score, digital, analog, 0.6) == 0.1
    with pytest.raises(ValueError, match=r"the best is 0\.6667"):
        choose_threshold(score, digital, analog, 0.7)


def test_each_kind_is_charged_with_what_it_costs():
    costs = Costs(analog=0.2, digital=2.0)
    assert mean_energy(0.25, "analog", costs) == pytest.approx(0.2 + 0.5)
    assert mean_energy(0.25, "known", costs) == pytest.approx(0.15 + 0.5)
    assert mean_energy(0.25, "digital", costs, passes=3) == pytest.approx(6 + 0.15)
    assert mean_energy(0.25, "student", costs, passes=0.05) == pytest.approx(0.1 + 0.15 + 0.5)
    # A score of a digital pass has the digital answer already.
    assert (mean_energy(np.linspace(0, 1, 5), "digital", costs) >= costs.digital).all()
    result = routed_at(0.5, [0.0, 1.0], [True, True], [True, False], kind="analog", costs=costs)
    assert (result.accuracy, result.energy, result.saved) == pytest.approx((1, 1.2, 0.4))
    baselines = routing_baselines([True, True], [True, False], costs)
    assert baselines.to_dict("list") == {
        "name": ["always analog", "always digital"],
        "accuracy": [0.5, 1.0],
        "energy": [0.2, 2.0],
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: routing_curve([np.nan, 1], [True] * 2, [True] * 2), "score has 1 NaN of 2"),
        (lambda: routing_curve([1.0], [True] * 2, [True] * 2), "lengths differ: score 1"),
        (lambda: routing_curve([1.0, 2], [True] * 2, [1, 0]), "analog_correct must be bools"),
        (
            lambda: routing_curve([1.0, 2], [True] * 2, [True] * 2, points=1),
            "points must be at least 2",
        ),
        (lambda: routing_curve([1.0, 2], [True] * 2, [True] * 2, kind="free"), "kind is analog"),
        (
            lambda: routing_curve(np.ones((3, 2)), [True] * 2, np.ones((2, 2), bool)),
            "3 chips have scores and 2 outcomes",
        ),
        (
            lambda: routing_curve(np.ones((0, 2)), [True] * 2, [True] * 2),
            "0 chips have scores and 1 outcomes",
        ),
        (lambda: routing_curve([], np.array([], bool), np.ones((1, 0), bool)), "no samples"),
        (lambda: routing_baselines(True, [True]), "digital_correct must be a vector of bools"),
        (lambda: routed_at(np.nan, [1.0], [True], [True]), "the threshold is NaN"),
        (lambda: choose_threshold([1.0], [True], [True], np.nan), "the target accuracy is NaN"),
        (lambda: Costs(analog=-1), "energy of an analog inference must be finite and >= 0"),
        (lambda: Costs().partly_analog(1.5), r"must lie in \[0, 1\]"),
        (lambda: Costs().partly_analog(-0.1), "finite and >= 0"),
        (lambda: Costs(digital=0), "energy of a digital inference must be finite and > 0"),
        (
            lambda: routed_at(0, [1.0], [True], [True], kind="digital", passes=0),
            "passes must be at least 1",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_scores_of_logits_are_those_of_the_softmax():
    logits = 4 * np.random.default_rng(3).normal(size=(50, 6)).astype(np.float32)
    p = softmax(logits.astype(np.float64), axis=1)
    found = logit_scores(logits)
    np.testing.assert_allclose(found["least_confidence"], 1 - p.max(1), rtol=1e-6)
    np.testing.assert_allclose(found["entropy"], -(p * np.log(p)).sum(1), rtol=1e-6)
    ordered = np.sort(logits, axis=1)
    np.testing.assert_allclose(found["margin"], ordered[:, -1] - ordered[:, -2], rtol=1e-6)
    sure = logit_scores(np.array([[0.0, 40.0], [0.0, 50.0]]))
    np.testing.assert_allclose(sure["least_confidence"], np.exp([-40.0, -50.0]), rtol=1e-6)
    assert (np.diff(sure["entropy"]) < 0).all()
    with pytest.raises(ValueError, match="logits are not finite"):
        logit_scores([[np.nan, 1.0]])
    with pytest.raises(ValueError, match=r"at least two classes; got float64 \(3,\)"):
        logit_scores([1.0, 2.0, 3.0])


# --- live


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture(scope="module")
def chip(model: nn.Module) -> bridge.chips.Chip:
    wnoise = bridge.chips.WeightNoise(0.3, drawn="per_mvm")  # whose draws the indices name
    return bridge.program(model, bridge.Profile(wnoise=wnoise), seed=0)


IMAGES = torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(1))
INDICES = [3 * n + 1 for n in range(40)]


def known_scores() -> dict[int, float]:
    return dict(zip(INDICES, np.random.default_rng(4).random(40).tolist(), strict=True))


@pytest.mark.parametrize("score", ["margin", "entropy", "least_confidence", "known"])
@pytest.mark.parametrize("quantile", [0.0, 0.3, 1.0])
def test_live_batches_are_routed_as_the_curve_says(model, chip, score, quantile):
    with torch.inference_mode():
        digital = model(IMAGES).numpy()
    analog = chip(IMAGES, INDICES).numpy()
    labels = digital.argmax(1)
    labels[::5] = 3 - labels[::5]  # which the digital model gets wrong
    if score == "known":
        values, kind = np.array(list(known_scores().values())), "known"
    else:
        values, kind = logit_scores(analog)[score].astype(float), "analog"
        values = -values if score == "margin" else values
    threshold = {0.0: -np.inf, 1.0: np.inf}.get(quantile, np.quantile(values, 1 - quantile))
    expected = routed_at(
        threshold, values, digital.argmax(1) == labels, analog.argmax(1) == labels, kind=kind
    )
    route = Router(model, chip, threshold, known_scores() if score == "known" else score)
    parts = [route(IMAGES[some], INDICES[some]) for some in (slice(0, 17), slice(17, 40))]
    routed = np.concatenate([part.routed for part in parts])
    prediction = np.concatenate([part.prediction for part in parts])
    logits = np.concatenate([part.logits for part in parts])
    assert routed.mean() == pytest.approx(expected.fraction)
    assert (prediction == labels).mean() == pytest.approx(expected.accuracy)
    energy = np.average([part.energy for part in parts], weights=[17, 23])
    assert energy == pytest.approx(expected.energy)
    np.testing.assert_allclose(np.concatenate([part.score for part in parts]), values, rtol=1e-5)
    np.testing.assert_allclose(logits, np.where(routed[:, None], digital, analog), rtol=1e-4)
    assert (prediction == logits.argmax(1)).all()


def test_known_samples_run_in_one_place_only(model, chip, monkeypatch):
    seen = {"digital": 0, "chip": 0}

    class Counting(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen["digital"] += len(images)
            return model(images)

    inner = bridge.chips.Chip.__call__

    def count(self, images, indices):
        seen["chip"] += len(images)
        return inner(self, images, indices)

    monkeypatch.setattr(bridge.chips.Chip, "__call__", count)
    route = Router(Counting().eval(), chip, 0.5, known_scores())
    route(IMAGES[:2], INDICES[:2])  # the first images of all are looked at more than once
    seen.update(digital=0, chip=0)
    answer = route(IMAGES, INDICES)
    assert seen == {"digital": answer.routed.sum(), "chip": (~answer.routed).sum()}
    Router(Counting().eval(), chip, -1.0)(IMAGES, INDICES)
    assert seen["chip"] == (~answer.routed).sum() + 40


def test_router_refuses(model, chip):
    training = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="training mode; call eval"):
        Router(training, chip, -0.5)
    with pytest.raises(ValueError, match="the threshold must be a number"):
        Router(model, chip, np.nan)
    with pytest.raises(ValueError, match="score is one of margin, entropy"):
        Router(model, chip, 0.5, "curvature")
    stored = pd.Series(np.arange(40.0))
    with pytest.raises(ValueError, match=r"got a Series; give dict\(zip\(table\['index'\]"):
        Router(model, chip, 0.5, stored)
    with pytest.raises(ValueError, match=r"got a ndarray$"):
        Router(model, chip, 0.5, stored.to_numpy())
    with pytest.raises(ValueError, match="40 images need as many indices"):
        Router(model, chip, -0.5)(IMAGES, INDICES[:3])
    with pytest.raises(ValueError, match=r"no score is stored for 39 of 40.*first at index 4"):
        Router(model, chip, 0.5, {1: 0.2})(IMAGES, INDICES)
    with pytest.raises(ValueError, match="the stored score of index 1 is NaN"):
        Router(model, chip, 0.5, {1: np.nan})(IMAGES[:1], [1])


@pytest.mark.parametrize(
    ("score", "threshold", "message"),
    [
        ("margin", 0.5, "routes nothing: the margin enters as -margin, at most 0; give -0.5 to"),
        ("margin", np.float32(2), "give -2 to route margins of at most 2, or inf"),
        ("margin", 3, "threshold 3 routes nothing"),
        ("least_confidence", 1.5, "least_confidence is at most 1; give a smaller one"),
    ],
)
def test_a_threshold_that_no_score_reaches_is_refused(model, chip, score, threshold, message):
    with pytest.raises(ValueError, match=message):
        Router(model, chip, threshold, score)


@pytest.mark.parametrize(
    ("score", "threshold"),
    [
        *(("margin", 0.0), ("margin", np.inf), ("margin", -0.5)),
        *(("least_confidence", 1.0), ("entropy", 5.0), ({1: 7.0}, 5.0)),
    ],
)
def test_other_thresholds_are_taken(model, chip, score, threshold):
    assert Router(model, chip, threshold, score).threshold == threshold


def test_router_refuses_a_model_that_trains_again(model, chip):
    copy = deepcopy(model)
    route = Router(copy, chip, -np.inf)
    copy.train()
    with pytest.raises(ValueError, match="training mode; call eval"):
        route(IMAGES, INDICES)


@pytest.mark.parametrize("score", ["margin", "known"])
def test_no_prediction_is_made_of_logits_that_are_not_finite(model, chip, score):
    broken = deepcopy(model)
    nn.init.constant_(broken[-1].bias, np.nan)
    route = Router(broken, chip, -np.inf, known_scores() if score == "known" else score)
    with pytest.raises(ValueError, match="not finite, first at index 1"):
        route(IMAGES, INDICES)


def test_indices_may_be_a_tensor_or_an_array(model, chip):
    route = Router(model, chip, 0.5, known_scores())
    expected = route(IMAGES, INDICES)
    for indices in (torch.tensor(INDICES), np.array(INDICES)):
        assert (route(IMAGES, indices).logits == expected.logits).all()
    with pytest.raises(ValueError, match="indices must not be negative, got -1"):
        Router(model, chip, 0.5, {-1: 1.0})(IMAGES[:1], [-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": IMAGES.double().numpy()},
            r"float32 images.*an array \[batch.*got an array float64 \(40, 1, 3, 3\)",
        ),
        ({"images": IMAGES.double()}, r"float32 images.*got a tensor torch.float64"),
        ({"images": IMAGES[:, 0, 0, 0]}, r"float32 images.*\(40,\)"),
        ({"images": [1.0]}, r"float32 images.*got list"),
        ({"indices": [0.5] * 40}, "indices must be whole numbers"),
        ({"indices": 3}, "indices must be whole numbers, one an image"),
        ({"score": dict.fromkeys(range(1000), "x")}, "the stored score of index .* is 'x'"),
        ({"chip": None}, "then a chip of bridge.program; got Sequential and NoneType"),
        ({"threshold": "x"}, "the threshold must be a number"),
        ({"score": np.ones(40)}, "a mapping from index to score, such as dict"),
    ],
)
def test_router_says_what_it_takes(model, chip, change, message):
    made = {"chip": chip, "threshold": -0.5, "score": "margin"} | change
    images, indices = made.pop("images", IMAGES), made.pop("indices", INDICES)
    with pytest.raises(ValueError, match=message):
        Router(model, **made)(images, indices)


@pytest.mark.parametrize("score", ["margin", "known"])
def test_arrays_have_their_channels_last(score):
    torch.default_generator.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(18, 4)).eval()
    chip = bridge.program(model, bridge.PROFILES["wnoise"], seed=0)
    images = torch.randn(5, 2, 4, 3, generator=torch.Generator().manual_seed(2))
    if score == "known":
        route = Router(model, chip, 0.5, dict(enumerate([0.1, 0.9, 0.2, 0.8, 0.3])))
    else:
        route = Router(model, chip, -np.median(logit_scores(chip(images, range(5)))["margin"]))
    expected = route(images, range(5))
    assert 0 < expected.routed.sum() < 5
    last = images.numpy().transpose(0, 2, 3, 1)
    for arrays in (last, jnp.asarray(last)):
        found = route(arrays, range(5))
        np.testing.assert_array_equal(found.routed, expected.routed)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(chip(arrays, range(5)), chip(images, range(5)), atol=1e-6)
    with pytest.raises(ValueError, match=r"3 channels, 2 by 4 pixels.*\[batch, height, width, cha"):
        route(images.numpy(), range(5))


def test_indices_are_positions_unless_scores_are_stored(model, chip):
    route = Router(model, chip, -0.5)
    given, default = route(IMAGES, range(40)), route(IMAGES)
    assert (given.logits == default.logits).all()
    assert not (given.logits == route(IMAGES, INDICES).logits).all()
    # Scores of other samples are stored under these positions.
    stored = Router(model, chip, 0.5, dict.fromkeys(range(40), 0.1))
    with pytest.raises(ValueError, match=r"belong to samples.*router\(images, indices\)"):
        stored(IMAGES)


def test_a_generator_of_indices_and_tensors_with_a_gradient_will_do(model, chip):
    route = Router(model, chip, -0.5)
    expected = route(IMAGES, INDICES)
    found = route(IMAGES.clone().requires_grad_(), (index for index in INDICES))
    assert (found.logits == expected.logits).all()


def test_a_digital_model_of_other_classes_is_told_as_that(model, chip):
    other = nn.Sequential(model, nn.Linear(model(IMAGES).shape[1], 2)).eval()
    with pytest.raises(ValueError, match="must have the same classes"):
        Router(other, chip, -0.5)(IMAGES, INDICES)


def test_router_refuses_images_of_another_scale(model):
    profile = bridge.Profile(adc=bridge.chips.ADC())
    calibrated = bridge.program(model, profile, seed=0, calibration=IMAGES)
    route = Router(model, calibrated, np.inf)
    assert not route(IMAGES, INDICES).routed.any()
    with pytest.raises(ValueError, match="normalise both as the model expects"):
        route(255 * IMAGES, INDICES)
    with pytest.warns(UserWarning, match="normalise both as the model expects"):
        Router(model, calibrated, np.inf)(IMAGES / 255, INDICES)


def test_a_network_that_is_partly_on_tiles_saves_less():
    costs = Costs(analog=0.2, digital=2.0)
    assert costs.partly_analog(1.0) == costs
    assert costs.partly_analog(0.0) == Costs(analog=2.0, digital=2.0)
    assert costs.partly_analog(0.75).analog == pytest.approx(0.65)
