"""A chip in JAX over a data set gives the table of `bridge.predict`."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge.chips import ADC, Profile, WeightNoise
from bridge.jax_chips import Chip, Programmed, analog, carried, predict, predict_chips
from jaxcurv import logit_scores

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(21, 6, 6, 3)).astype(np.float32)
LABELS = RNG.integers(0, 4, 21)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()


@cache
def exported(network: nn.Module) -> tuple[Any, Any]:
    return bridge.to_jax(network, IMAGES)


def in_jax(network: nn.Module, profile: Profile) -> tuple[Chip, Programmed]:
    logits_fn, params = exported(network)
    chip = analog(logits_fn, params, profile, IMAGES)
    return chip, chip.program(params, jax.random.key(0))


def test_what_depends_on_the_batch_is_not_kept(network: nn.Module) -> None:
    chip, weights = in_jax(network, bridge.PROFILES["wnoise"])

    def keep(logits: np.ndarray) -> dict[str, np.ndarray]:
        return {"score": logits.max(1) - logits.max(1).mean()}

    with pytest.raises(ValueError, match="keep makes score of the batch as a whole"):
        predict(chip, weights, (IMAGES, LABELS), batch_size=8, keep=keep)
    with pytest.raises(ValueError, match="keep makes score of the batch as a whole"):
        predict_chips(chip, jax.random.split(jax.random.key(0), 2), (IMAGES, LABELS), keep=keep)


def test_the_table_is_that_of_a_carried_chip(network: nn.Module) -> None:
    chip = bridge.program(network, bridge.PROFILES["wnoise+pcm"], seed=0)
    expected = bridge.predict(chip, (IMAGES, LABELS), keep=logit_scores)
    found = predict(*carried(chip, IMAGES), (IMAGES, LABELS), batch_size=8, keep=logit_scores)
    assert found.columns.tolist() == expected.columns.tolist()
    assert found.dtypes.tolist() == expected.dtypes.tolist()
    for column in found:
        if found[column].dtype.kind == "f":
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-4, atol=1e-5)
        else:
            assert found[column].tolist() == expected[column].tolist()


def test_no_sample_depends_on_its_batch(network: nn.Module) -> None:
    chip, weights = in_jax(network, Profile(wnoise=WeightNoise(0.1, drawn="per_mvm")))
    rows = [{"image": IMAGES[i], "label": int(LABELS[i]), "index": 100 + i} for i in range(21)]
    whole = predict(chip, weights, rows, batch_size=21)
    some = predict(chip, weights, rows[5:9], batch_size=3)
    np.testing.assert_allclose(
        np.stack(some["logits"]), np.stack(whole["logits"][5:9]), rtol=1e-4, atol=1e-5
    )
    assert some["index"].tolist() == [105, 106, 107, 108]


def test_bad_samples_are_refused(network: nn.Module) -> None:
    chip, weights = in_jax(network, Profile(ADC()))

    def run(images: np.ndarray, labels: Any = LABELS) -> None:
        predict(chip, weights, (images, labels))

    with pytest.raises(ValueError, match="normalise both as the model expects"):
        run(100 * IMAGES)
    with pytest.warns(UserWarning, match=r"images reach .* normalise both as the model expects"):
        run(IMAGES / 100)
    with pytest.raises(ValueError, match=r"images of shape \(5, 6, 3\)"):
        run(IMAGES[:, :5])
    with pytest.raises(ValueError, match="the model's classes; that of image"):
        run(IMAGES, LABELS + 3)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, weights.params)
    with pytest.raises(ValueError, match="non-finite"):
        predict(chip, weights._replace(params=broken), (IMAGES, LABELS))


def test_clipped_share_counts_outputs_beyond_the_range(network: nn.Module) -> None:
    profile = Profile(ADC(range=2.0))
    chip, weights = in_jax(network, profile)
    expected = bridge.chips.clipped_share(bridge.program(network, profile, seed=0), IMAGES)
    found = chip.clipped_share(weights, IMAGES)
    shares = np.concatenate(list(found.values()))
    np.testing.assert_allclose(shares, list(expected.values()), atol=1e-3)
    assert list(found) == ["0.weight", "3.weight"]
    assert 0.05 < found["0.weight"][0] < 0.95
    ideal, programmed = in_jax(network, Profile())
    with pytest.raises(ValueError, match="profile ideal has no ADC"):
        ideal.clipped_share(programmed, IMAGES)
