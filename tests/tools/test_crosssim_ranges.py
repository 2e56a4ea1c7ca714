"""Folded BatchNorms, and the unit in which ranges are compared."""

import numpy as np
import pytest
import torch

from tests.torch_networks import randomised
from tools.crosssim_ranges import compare, fold, passing
from tools.published_networks import CrossSimResNet


@pytest.fixture
def network() -> CrossSimResNet:
    torch.manual_seed(0)
    return randomised(CrossSimResNet())  # type: ignore[return-value]


def test_folding_keeps_the_logits(network: CrossSimResNet) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = network(images)
        fold(network)
        torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-4)
    norms = [one for one in network.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    assert not norms


def test_quantiles_are_in_units_of_the_largest_weight_and_input(network: CrossSimResNet) -> None:
    images = np.random.default_rng(2).normal(size=(4, 8, 8, 3)).astype(np.float32)
    limits = np.stack([-np.arange(1.0, 23), np.arange(1.0, 23)], axis=1)
    table = compare(network, limits, images)
    assert table["layer"].tolist()[0] == "conv1"
    assert table["layer"].tolist()[-1] == "classifier.2"
    assert table["high"].tolist() == limits[:, 1].tolist()
    assert (table.loc[table["tiles"] > 1, "layer"].str.startswith("res3")).all()
    inputs, outputs = passing(network, images)["conv1"]  # folded by now
    np.testing.assert_allclose(inputs.numpy(), images.transpose(0, 3, 1, 2))
    weight = network.conv1.weight.detach()
    plain = torch.nn.functional.conv2d(inputs, weight, padding=1).numpy()
    np.testing.assert_allclose(outputs.numpy(), plain, atol=1e-5)
    unit = weight.abs().max().item() * np.quantile(np.abs(images), 0.9999)
    wanted = np.quantile(plain, [0.0005, 0.9995]) / unit
    np.testing.assert_allclose(table.iloc[0][["low_quantile", "high_quantile"]].tolist(), wanted)
