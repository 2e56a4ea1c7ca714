"""Twins of each ResNet and stem: on enlarged digits and on CIFAR."""

import os
from pathlib import Path

import numpy as np
import pytest

from bridge import to_torch
from jaxcurv import data
from tests.bridge.weights.test_state import (
    assert_twins_agree_both_ways,
    flax_resnet,
    logits_of_flax,
    logits_of_twin,
    relative_error,
)

pytestmark = pytest.mark.long


@pytest.mark.parametrize(("name", "stem"), [("resnet18", "cifar"), ("resnet50", "imagenet")])
def test_twins_agree_both_ways(name: str, stem: str) -> None:
    assert_twins_agree_both_ways(name, stem)


@pytest.mark.skipif("JAXCURV_DATA_DIR" not in os.environ, reason="JAXCURV_DATA_DIR is not set")
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_twins_agree_on_cifar(name: str) -> None:
    cifar = data.load("cifar10", Path(os.environ["JAXCURV_DATA_DIR"]) / "tfds").test
    pixels = np.stack([cifar[position]["image"] for position in range(8)])
    images = data.Normalisation.of(pixels).apply(pixels)
    model = flax_resnet(name, "cifar")
    expected = logits_of_flax(model, images)
    assert relative_error(logits_of_twin(to_torch(model), images, name, "cifar"), expected) < 1e-4
