"""Layer by layer: as in PyTorch, and as chips of which one layer alone is on tiles."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge.chips import ADC, PCM, Profile, WeightNoise
from bridge.jax_chips import analog, carried, layer_failures, layer_report, predict

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(20, 8, 8, 3)).astype(np.float32)
LABELS = RNG.integers(0, 4, 20)
PER_MVM = WeightNoise(0.1, drawn="per_mvm")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Without biases, which a layer of PyTorch adds and tiles do not."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Tanh(),
        nn.Flatten(), nn.Linear(216, 4, bias=False),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def in_jax(network: nn.Module) -> tuple[Any, Any]:
    return bridge.to_jax(network, IMAGES)


@pytest.mark.parametrize("profile", [Profile(memory=PCM()), Profile(ADC(5), memory=PCM())])
def test_the_report_is_that_of_pytorch(
    network: nn.Module, in_jax: tuple[Any, Any], profile: Profile
) -> None:
    chip = bridge.program(network, profile, seed=3, calibration=IMAGES)
    expected = bridge.chips.layer_report(chip, network, IMAGES)
    made, weights = carried(chip, IMAGES)
    digital = replace(made, params=in_jax[1])
    found = layer_report(digital, weights, IMAGES)
    assert found.columns.tolist() == expected.columns.tolist()
    assert found.dtypes.tolist() == expected.dtypes.tolist()
    assert [name.removesuffix(".weight") for name in found["layer"]] == expected["layer"].tolist()
    assert found["tiles"].tolist() == expected["tiles"].tolist()
    # With a converter a few outputs round to the next code.
    tolerance = 1e-3 if profile.adc is None else 0.1
    for name in ("snr_db", "own_snr_db"):
        np.testing.assert_allclose(found[name], expected[name], atol=tolerance)
    np.testing.assert_allclose(found["clipped_share"], expected["clipped_share"], atol=2e-3)


def test_the_report_tells_what_a_layer_adds_from_what_it_is_given(in_jax: tuple[Any, Any]) -> None:
    logits_fn, params = in_jax
    chip = analog(logits_fn, params, Profile(wnoise=PER_MVM), IMAGES)
    found = layer_report(chip, chip.program(params, jax.random.key(0)), IMAGES)
    np.testing.assert_allclose(found["snr_db"][0], found["own_snr_db"][0], rtol=1e-4)
    assert (found["snr_db"][1:] < found["own_snr_db"][1:]).all()
    ideal = analog(logits_fn, params, Profile(), IMAGES)
    exact = layer_report(ideal, ideal.program(params, jax.random.key(0)), IMAGES)
    assert (exact["own_snr_db"] > 100).all()
    assert exact["clipped_share"].isna().all()


@pytest.mark.parametrize(
    "profile",
    [
        Profile(memory=PCM(t_inference=3600.0)),
        Profile(ADC(4), PER_MVM),
        pytest.param(Profile(ADC(3), memory=PCM()), marks=pytest.mark.long),
        pytest.param(Profile(wnoise=PER_MVM), marks=pytest.mark.long),
    ],
    ids=lambda profile: profile.name,
)
def test_each_layer_alone_is_a_chip_of_its_own(in_jax: tuple[Any, Any], profile: Profile) -> None:
    logits_fn, params = in_jax
    chip = analog(logits_fn, params, profile, IMAGES)
    table = layer_failures(chip, (IMAGES, LABELS), seed=5, chips=2, batch_size=8)
    assert table["layer"].tolist() == [*chip.layers, "all layers"]
    assert (table["chips"] == 2).all()
    assert (table["samples"] == 40).all()
    right = np.asarray(logits_fn(params, jnp.asarray(IMAGES))).argmax(1) == LABELS
    assert (table["digitally_correct"] == 2 * right.sum()).all()
    for row in table.itertuples():
        alone = [] if row.layer == "all layers" else [x for x in chip.layers if x != row.layer]
        other = analog(logits_fn, params, profile, IMAGES, digital_layers=alone)
        failures, correct = 0, 0
        for seed in (5, 6):
            weights = other.program(params, jax.random.key(seed))
            analog_right = predict(other, weights, (IMAGES, LABELS))["correct"].to_numpy()
            failures += (right & ~analog_right).sum()
            correct += analog_right.sum()
        assert (row.failures, row.analog_accuracy) == (failures, correct / 40)
    assert table["failures"].sum() > 0


def test_a_layer_that_is_used_twice_is_one() -> None:
    """tanh(tanh(x W) W) of which both calls err."""
    weight = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
    images = RNG.normal(size=(6, 4)).astype(np.float32)

    def logits_fn(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x @ params["w"]) @ params["w"])

    chip = analog(logits_fn, {"w": weight}, Profile(memory=PCM()), images)
    weights = chip.program(chip.params, jax.random.key(0))
    found = layer_report(chip, weights, images)
    first, then = images @ weight, np.tanh(images @ weight)
    wrong = weights.params["w"]
    signal = (first**2).sum() + ((then @ weight) ** 2).sum()
    own = ((images @ wrong - first) ** 2).sum() + ((then @ (wrong - weight)) ** 2).sum()
    running = np.tanh(images @ wrong) @ wrong
    error = ((images @ wrong - first) ** 2).sum() + ((running - then @ weight) ** 2).sum()
    np.testing.assert_allclose(found["own_snr_db"], 10 * np.log10(signal / own), rtol=1e-4)
    np.testing.assert_allclose(found["snr_db"], 10 * np.log10(signal / error), rtol=1e-4)


def test_what_cannot_be_is_refused(in_jax: tuple[Any, Any]) -> None:
    logits_fn, params = in_jax
    chip = analog(logits_fn, params, Profile(), IMAGES)
    weights = chip.program(params, jax.random.key(0))
    with pytest.raises(ValueError, match="the chip was made for"):
        layer_report(chip, weights, IMAGES[:, :4])
    with pytest.raises(ValueError, match="chips must be"):
        layer_failures(chip, (IMAGES, LABELS), chips=0)
    with pytest.raises(ValueError, match="no samples"):
        layer_failures(chip, (IMAGES[:0], LABELS[:0]))
    broken = jax.tree.map(lambda leaf: leaf * np.inf, weights.params)
    with pytest.raises(ValueError, match="non-finite outputs in layers"):
        layer_report(chip, weights._replace(params=broken), IMAGES)


def test_a_layer_in_two_layouts_is_compared_in_each() -> None:
    weight = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
    images = RNG.normal(size=(6, 4)).astype(np.float32)

    def two(params: Any, x: jax.Array) -> jax.Array:
        return (params["w"].T @ jnp.tanh(x @ params["w"]).T).T

    def one(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params["w"]) @ params["w"]

    tables = []
    for function in (two, one):
        chip = analog(function, {"w": weight}, Profile(memory=PCM()), images)
        weights = chip.program(chip.params, jax.random.key(0))
        tables.append(layer_report(chip, weights, images))
    assert len(tables[0]) == 1
    np.testing.assert_allclose(tables[0]["own_snr_db"], tables[1]["own_snr_db"], rtol=1e-4)
    np.testing.assert_allclose(tables[0]["snr_db"], tables[1]["snr_db"], rtol=1e-4)


def test_samples_are_those_that_predict_takes(in_jax: tuple[Any, Any]) -> None:
    logits_fn, params = in_jax
    chip = analog(logits_fn, params, Profile(memory=PCM()), IMAGES)
    rows = [{"image": IMAGES[i], "label": int(LABELS[i]), "index": i} for i in range(4)]
    with pytest.raises(ValueError, match="3 occurs 2 times"):
        layer_failures(chip, [*rows, rows[3]])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
        layer_failures(chip, [rows[0] | {"label": 9}])
