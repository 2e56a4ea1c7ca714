"""Students: what they learn, what they cost, and that a score is the input's own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata
from torch import nn

import bridge
from bridge.routing import Student, fit_student, load_student, save_student
from bridge.routing.student_network import (
    Architecture,
    abstract_network,
    architecture_for,
    log_odds,
)

BUDGET = 5000
RNG = np.random.default_rng


def auroc(failed: np.ndarray, score: np.ndarray) -> float:
    """Mann and Whitney: how often a failing sample scores higher than another, ties half."""
    ranks, positives = rankdata(score), failed.sum()
    return (ranks[failed].sum() - positives * (positives + 1) / 2) / (positives * (~failed).sum())


def planted(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count, 8, 8, 1], and whether they fail: the darker half."""
    rng = RNG(seed)
    light = rng.uniform(0.2, 1.0, count)
    pixels = rng.uniform(0, 255, (count, 8, 8, 1)) * light[:, None, None, None]
    return pixels.astype(np.uint8), light < 0.6


@pytest.fixture(scope="module")
def fitted() -> Student:
    return fit_student(*planted(0), budget_macs=BUDGET, seed=0, epochs=8)


# --- what is learnt


def test_dark_images_that_fail_are_learnt(fitted: Student) -> None:
    images, failed = planted(1)
    assert auroc(failed, fitted(images)) > 0.95
    assert fitted.held_out_loss < 0.7 * fitted.constant_loss


def test_noise_teaches_nothing() -> None:
    images, _ = planted(0)
    noise = RNG(5).random(len(images)) < 0.5
    made = fit_student(images, noise, budget_macs=BUDGET, seed=0, epochs=4)
    held_out, failed = planted(1, 2000)[0], RNG(6).random(2000) < 0.5
    assert abs(auroc(failed, made(held_out)) - 0.5) < 0.06  # its standard error is 0.013
    assert made.held_out_loss > 0.9 * made.constant_loss


def test_a_budget_of_one_product_learns_the_mean_pixel() -> None:
    """A logistic regression of the mean pixel has the closed form's sign and ranks by it."""
    images, failed = planted(0)
    made = fit_student(images, failed, budget_macs=1, seed=0, epochs=20, learning_rate=0.03)
    assert made.architecture == Architecture((8, 8, 1), pooling=8)
    others, _ = planted(1)
    mean = others.mean(axis=(1, 2, 3), dtype=np.float64)
    assert (np.argsort(made(others)) == np.argsort(-mean)).mean() > 0.99


def test_a_share_of_the_chips_is_predicted_as_one() -> None:
    """Where nothing tells samples apart, the prediction is the mean target."""
    vectors = RNG(0).normal(size=(600, 3))
    share = RNG(1).choice([0.0, 0.5], 600)
    made = fit_student(vectors, share, budget_macs=3, seed=0, epochs=10)
    assert made(vectors).mean() == pytest.approx(share.mean(), abs=0.03)


def test_vectors_take_a_hidden_layer() -> None:
    """Failing where two features have one sign, which no linear score tells."""
    vectors = RNG(0).normal(size=(1500, 2))
    failed = vectors.prod(axis=1) > 0
    made = fit_student(vectors, failed, budget_macs=200, seed=0, epochs=30, learning_rate=0.02)
    assert made.architecture.widths == (32,)
    linear = fit_student(vectors, failed, budget_macs=2, seed=0, epochs=5)
    assert linear.architecture.widths == ()
    others = RNG(1).normal(size=(1000, 2))
    assert auroc(others.prod(axis=1) > 0, made(others)) > 0.95
    assert abs(auroc(others.prod(axis=1) > 0, linear(others)) - 0.5) < 0.1


# --- what it costs


@pytest.mark.parametrize(
    ("shape", "budget", "widths", "pooling"),
    [
        ((32, 32, 3), 1_750_000, (26, 52, 104), 1),
        ((9, 7, 2), 20_000, (12, 24), 1),
        ((8, 8, 1), 300, (8,), 2),
        ((8, 8, 1), 100, (), 1),
        ((9, 9, 1), 30, (), 2),
        ((8, 8, 3), 3, (), 8),
        ((16, 16, 3), 4100, (9,), 2),
        ((64,), 5000, (32,), 1),
        ((64,), 300, (4,), 1),
        ((64,), 64, (), 1),
    ],
)
def test_macs_are_those_of_coverage(
    shape: tuple[int, ...], budget: int, widths: tuple[int, ...], pooling: int
) -> None:
    made = architecture_for(shape, budget)
    assert (made.widths, made.pooling) == (widths, pooling)
    assert made.macs <= budget
    _, shapes = abstract_network(made)
    weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    chip = bridge.analog(
        lambda weights, images: log_odds(made, weights, images)[:, None] * np.ones(2, np.float32),
        weights,
        bridge.PROFILES["ideal"],
        np.zeros((2, *shape), np.float32),
    )
    assert made.macs == chip.coverage["macs"].sum()


def test_macs_are_those_of_the_same_network_in_torch() -> None:
    made = architecture_for((32, 32, 3), 1_750_000)
    channels, layers = 3, list[nn.Module]()
    for outputs in made.widths:
        layers += [nn.Conv2d(channels, outputs, 3, 2, 1), nn.ReLU()]
        channels = outputs
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))
    table = bridge.coverage(network.eval(), np.zeros((2, 32, 32, 3), np.float32))
    assert made.macs == table["macs"].sum()


def test_the_largest_that_fits_is_taken() -> None:
    made = architecture_for((32, 32, 3), 1_750_000)
    assert replace(made, widths=(27, 54, 108)).macs > 1_750_000


# --- a score is the input's own


def test_a_score_does_not_depend_on_its_batch(fitted: Student) -> None:
    images, _ = planted(2, 150)
    scores, order = fitted(images), RNG(0).permutation(150)
    assert scores.dtype == np.float64
    assert ((scores > 0) & (scores < 1)).all()
    np.testing.assert_array_equal(fitted(images[order]), scores[order])
    np.testing.assert_array_equal(fitted(images[77:78]), scores[77:78])
    assert fitted(images[:0]).shape == (0,)


def test_one_seed_gives_one_student(fitted: Student) -> None:
    again, another = (
        fit_student(*planted(0), budget_macs=BUDGET, seed=seed, epochs=8) for seed in (0, 1)
    )
    images, _ = planted(2, 50)
    np.testing.assert_array_equal(again(images), fitted(images))
    assert (another(images) != fitted(images)).all()


def test_floats_in_any_unit_score_alike() -> None:
    images, failed = planted(0, 200)
    others, _ = planted(1, 50)
    one, scaled = (
        fit_student(images / unit, failed, budget_macs=64, seed=0, epochs=3)(others / unit)
        for unit in (1.0, 1000.0)
    )
    np.testing.assert_allclose(one, scaled, rtol=1e-3)


def test_the_standardisation_is_of_each_channel() -> None:
    images = RNG(0).integers(0, 256, (130, 4, 4, 2), np.uint8)
    images[..., 1] = 7
    made = fit_student(images, np.arange(130) % 2 == 0, budget_macs=32, seed=0, epochs=1)
    np.testing.assert_allclose(made.mean, [images[..., 0].mean(), 7])
    np.testing.assert_allclose(made.std, [images[..., 0].std(), 1])


# --- files


def test_a_file_gives_the_student_back(fitted: Student, tmp_path: Path) -> None:
    save_student(tmp_path / "one.safetensors", fitted)
    found = load_student(tmp_path / "one.safetensors")
    images, _ = planted(2, 50)
    np.testing.assert_array_equal(found(images), fitted(images))
    assert found.macs == fitted.macs
    for name in ("architecture", "inputs", "mean", "std", "held_out_loss", "constant_loss"):
        assert getattr(found, name) == getattr(fitted, name)


def test_a_damaged_file_is_refused(fitted: Student, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_student(path, fitted)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_student(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_student(path)
    bridge.weights.save_weights(path, nn.Linear(2, 2).state_dict(), {"name": "linear"})
    with pytest.raises(ValueError, match="holds no student of save_student"):
        load_student(path)
    save_student(path, replace(fitted, architecture=Architecture((8, 8, 1), 2, (8,))))
    with pytest.raises(ValueError, match="weights of shapes"):
        load_student(path)
    with pytest.raises(FileNotFoundError, match="no student at"):
        load_student(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_student(tmp_path / "absent" / "one.safetensors", fitted)


# --- what is refused


IMAGES, FAILED = planted(0, 40)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget_macs": 0}, "budget_macs must be at least 1"),
        ({"images": np.zeros((40, 65)), "budget_macs": 64}, "a logistic regression takes 65"),
        ({"targets": np.full(40, 0.5)}, "every target is 0.5: there is nothing to learn"),
        ({"targets": FAILED * 2.0}, r"targets must lie in \[0, 1\]"),
        ({"targets": np.where(FAILED, np.nan, 0)}, r"targets must lie in \[0, 1\]"),
        ({"targets": FAILED[:-1]}, "lengths differ: images 40, targets 39"),
        ({"targets": [["a"]]}, "targets must be a vector of numbers"),
        ({"images": IMAGES[:19], "targets": FAILED[:19]}, "19 samples are too few"),
        ({"images": IMAGES[..., 0]}, r"images must be \[n, height, width, channel\]"),
        ({"images": IMAGES.astype(np.int32)}, "uint8 or floats; got int32"),
        ({"images": IMAGES * np.nan}, "inputs must be finite"),
        ({"images": IMAGES * 1e200}, "inputs must be finite in float32"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning rate must be finite and > 0"),
        ({"learning_rate": 1e30}, "loss is not finite"),
    ],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"images": IMAGES, "targets": FAILED, "budget_macs": 64, "seed": 0}
    given |= {"epochs": 2} | changed
    with pytest.raises(ValueError, match=message):
        fit_student(given.pop("images"), given.pop("targets"), **given)


def test_targets_of_a_sorted_or_shuffled_table_are_refused() -> None:
    images, failed = planted(0, 40)
    targets = pd.Series(failed.astype(float)).sample(frac=1, random_state=0)
    for given in (images, pd.DataFrame(images.reshape(40, -1)).astype(np.float32)):
        with pytest.raises(ValueError, match=r"targets .*order"):
            fit_student(given, targets, budget_macs=BUDGET, seed=0)
        fit_student(given, targets.sort_index(), budget_macs=BUDGET, seed=0, epochs=1)


def test_inputs_of_another_kind_are_refused(fitted: Student) -> None:
    with pytest.raises(ValueError, match="fitted on uint8 inputs and got float64"):
        fitted(IMAGES / 255)
    with pytest.raises(ValueError, match=r"takes inputs \(8, 8, 1\), a batch of them; got"):
        fitted(IMAGES[0])
    with pytest.raises(ValueError, match=r"takes inputs \(8, 8, 1\)"):
        fitted(IMAGES[:, :4])
