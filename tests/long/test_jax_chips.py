"""Chips in JAX, AIHWKit's and closed forms are not told apart: a million weights, thirty chips."""

import warnings
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn

import bridge
from bridge.chips import PCM, Hermes, ReRamCMO, ReRamWan2022
from bridge.jax_chips import analog, devices

pytestmark = pytest.mark.long

HOUR, DAY, YEAR = 3600.0, 86400.0, 365 * 86400.0
BINS = 10
MEMORIES: list[Any] = [
    *(replace(PCM(), t_inference=t) for t in (0.0, 20.0, HOUR, YEAR)),
    *(replace(Hermes(), t_inference=t) for t in (0.0, 20.0, HOUR, YEAR)),
    *(ReRamWan2022(t_inference=t) for t in (1.0, DAY, 2 * DAY)),
    *(ReRamCMO(t_inference=t) for t in (0.0, 20.0, HOUR, YEAR)),
]


@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
def test_deviations_of_a_million_weights(memory: Any) -> None:
    """By bins of magnitude: means within 0.1 % of the largest weight, spreads within 1 %.

    With 210,000 weights a bin, the difference of two spreads has an error of 0.2 %. The closed
    forms' spread of a bin is that of its weights' means and the mean of their variances.
    """
    random = np.random.default_rng(0)
    programmed = jax.jit(lambda key, targets: devices.program(memory, key, targets))
    read = jax.jit(lambda key, one, state: devices.read(memory, key, one, state))
    found: list[tuple[np.ndarray, ...]] = []
    for tile in range(8):  # of 512 x 512: two million weights
        targets = random.normal(size=(512, 512)).clip(-3, 3).astype(np.float32) / 3
        first, second = jax.random.split(jax.random.key(tile))
        in_jax = read(second, *programmed(first, jnp.asarray(targets)))
        torch.manual_seed(tile)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = memory.noise_model()
            weights, state = model.apply_programming_noise(torch.tensor(targets))
            in_torch = model.apply_drift_noise(weights, state, memory.t_inference).numpy()
        moments = memory.moments(targets)
        deviations = (one - targets for one in (np.asarray(in_jax), in_torch, moments.mean))
        found.append((np.abs(targets), *deviations, moments.variance))
    magnitudes, ours, theirs, means, variances = (
        np.concatenate([one.ravel() for one in column]) for column in zip(*found, strict=True)
    )
    edges = np.quantile(magnitudes, np.linspace(0, 1, BINS + 1))[1:-1]
    bins = np.digitize(magnitudes, edges)
    for number in range(BINS):
        here = bins == number
        assert ours[here].mean() == pytest.approx(float(theirs[here].mean()), abs=1e-3)
        assert ours[here].std() == pytest.approx(float(theirs[here].std()), rel=0.01)
        assert means[here].mean() == pytest.approx(float(theirs[here].mean()), abs=1e-3)
        spread = np.sqrt(variances[here].mean() + means[here].var())
        assert spread == pytest.approx(float(theirs[here].std()), rel=0.01)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A small network of scikit-learn's digits, and images that it has not seen."""
    data = load_digits()
    images = (data.images[..., None] / 8 - 1).astype(np.float32)
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    x, y = torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(data.target)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(12):
        for part in torch.randperm(1200).split(60):
            loss = nn.functional.cross_entropy(network(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval(), images[1200:], data.target[1200:]


def test_failure_rates_of_thirty_chips(trained: tuple[nn.Module, np.ndarray, np.ndarray]) -> None:
    """Two samples of thirty rates a profile, with Holm's correction at 1 %; chips of an ADC
    alone are all alike, and their predictions agree."""
    network, images, labels = trained
    calibration, images, labels = images[:100], images[100:], labels[100:]
    logits_fn, params = bridge.to_jax(network, calibration)
    channels_first = torch.tensor(images).permute(0, 3, 1, 2)
    pvalues = {}
    for name, profile in bridge.PROFILES.items():
        made = analog(logits_fn, params, profile, calibration)
        program = jax.jit(made.program)
        ours = np.stack(
            [
                np.asarray(made.apply(program(params, jax.random.key(seed)), images)).argmax(1)
                for seed in range(30)
            ]
        )
        theirs = np.stack(
            [
                bridge.program(network, profile, seed=seed, calibration=calibration)(
                    channels_first, range(len(images))
                ).argmax(1)
                for seed in range(30)
            ]
        )
        if profile.wnoise is None and profile.memory is None:  # nothing is drawn
            assert (ours == theirs).mean() > 0.995, name
            continue
        rates = [(one != labels).mean(1) for one in (ours, theirs)]
        assert rates[0].std() > 0
        pvalues[name] = stats.mannwhitneyu(*rates).pvalue
    ordered = sorted(pvalues.values())
    assert all(p > 0.01 / (len(ordered) - i) for i, p in enumerate(ordered)), pvalues
