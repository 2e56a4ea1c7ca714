"""The label of the setting reaches the chips of both engines, in stages and in studies."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import bridge
from bridge.jax_chips.keys import chip_key
from experiments.chips.in_jax import JaxNetwork
from experiments.chips.in_torch import TorchNetwork
from experiments.settings.presets import PRESETS
from experiments.studies.exported import open_exported
from tests.chips import digits_network
from tests.exported_run import write_exported_digits

DIGITS = PRESETS["digits"].experiment
NOISE = bridge.Profile(wnoise=bridge.chips.WeightNoise(0.3))


@pytest.mark.parametrize("label", [None, "a"])
def test_studies_are_of_the_label_s_chips(label: str | None, tmp_path: Path) -> None:
    write_exported_digits(tmp_path)
    experiment = replace(DIGITS, simulate=replace(DIGITS.simulate, stream=label))
    opened = open_exported(experiment, tmp_path, None, profile="wnoise", limit=50)
    assert ("stream" in opened.origin, opened.origin.get("stream")) == (label == "a", label)
    network = opened.network
    assert isinstance(network, TorchNetwork)
    chip = bridge.program(network.module, NOISE, seed=2, stream=label)
    expected = bridge.predict(chip, opened.test)
    found = network.program(NOISE, 2).predict(opened.test, "test")
    np.testing.assert_array_equal(np.stack(found["logits"]), np.stack(expected["logits"]))
    layers = network.layer_failures(NOISE, opened.test, seed=2)
    wrong = bridge.predict(network.module, opened.test)["correct"] & ~expected["correct"]
    assert layers["failures"].iloc[-1] == wrong.sum() > 0


def test_chips_in_jax_have_the_label_s_key() -> None:
    images = np.random.default_rng(0).random((40, 8, 8, 1), np.float32)
    source: Any = (images, np.arange(40) % 10)
    function, params = bridge.to_jax(digits_network(), images)
    plain = JaxNetwork(function, params, images)
    labelled = replace(plain, stream="a")
    logits = {}
    for network, label in ((plain, None), (labelled, "a")):
        chip = network.program(NOISE, 2)
        made = bridge.analog(function, params, NOISE, images)
        expected = made.apply(made.program(params, chip_key(2, label)), images)
        tables = network.predict_chips([chip, network.program(NOISE, 3)], source, "test")
        for table in (chip.predict(source, "test"), tables[0]):
            logits[label] = np.stack(table["logits"])
            np.testing.assert_allclose(logits[label], expected, atol=1e-4)
    assert not np.allclose(logits[None], logits["a"], atol=0.01)
    assert labelled.program(NOISE, 2).key != jax.random.key(2)
