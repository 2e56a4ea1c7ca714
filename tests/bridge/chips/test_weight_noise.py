"""Weight noise of each matrix-vector product, against AIHWKit's compiled tile."""

import json
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from bridge import Profile, predict, program
from bridge.chips import WeightNoise
from bridge.chips.programming import Engine
from tests.compiled_tile import (
    KINDS,
    REPEATS,
    SIGMA,
    Statistics,
    closed_form,
    exact,
    inputs,
    layer,
    measure,
    statistics,
)
from tests.conftest import ROOT

KEPT = json.loads((ROOT / "tests" / "data" / "compiled_tile.json").read_text())
TOLERANCE = 6
"""Standard errors: there are a thousand comparisons, and the compiled tile cannot be seeded."""

each_kind = pytest.mark.parametrize("kind", list(KINDS))
compiled = pytest.mark.skipif(
    sys.version_info < (3, 12),
    reason="AIHWKit 1.1, the one for Python 3.11, cannot run its compiled tile with every torch",
)


def kept(kind: str) -> Statistics:
    return {name: np.array(values) for name, values in KEPT["noise"][kind].items()}


def weights() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights, biases and inputs that the kept statistics are of."""
    return np.array(KEPT["weights"]), np.array(KEPT["bias"]), np.array(KEPT["inputs"])


def our_errors(kind: str, engine: Engine, draws: int) -> np.ndarray:
    """Errors of our chip's outputs, `[input, draw, output]`: each input under `draws` indices."""
    weight, bias, x = weights()
    model = nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(40, 6)))
    model.fc.weight.data = torch.tensor(weight).float()
    model.fc.bias.data = torch.tensor(bias).float()
    profile = Profile(wnoise=WeightNoise(SIGMA, kind, "per_mvm"))
    chip = program(model.eval(), profile, seed=0, engine=engine)
    images = x.astype(np.float32).reshape(len(x), 1, 40, 1).repeat(draws, axis=0)
    samples = [{"image": image, "label": 0, "index": i} for i, image in enumerate(images)]
    table = predict(chip, samples, batch_size=500, description="test")
    logits = np.stack(table["logits"].to_numpy()).astype(np.float64)
    return logits.reshape(len(x), draws, 6) - exact(weight, bias, x)[:, None]


def assert_white_gaussian(found: Statistics, draws: int) -> None:
    """No bias, Gaussian, and independent between outputs and between products."""
    error = 1 / np.sqrt(draws)
    assert (np.abs(found["mean"]) < TOLERANCE * error * found["std"]).all()
    # Over all, as a single one has a long tail. Of a uniform distribution it is 1.8.
    assert abs(found["kurtosis"].mean() - 3) < 0.2
    assert (found["correlation_within"] < TOLERANCE * error).all()
    assert (found["correlation_successive"] < TOLERANCE * error).all()


def assert_spread(found: np.ndarray, draws: int, expected: np.ndarray, of: float = np.inf) -> None:
    """Standard deviations, from `draws` and from `of` values, agree."""
    assert (np.abs(found / expected - 1) < TOLERANCE * np.sqrt(0.5 / draws + 0.5 / of)).all()


def test_kept_statistics_are_of_the_script_s_layer() -> None:
    for ours, theirs in zip((*layer(), inputs()), weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert KEPT["settings"]["sigma"] == SIGMA
    assert KEPT["settings"]["w_noise_type"] == {k: noise.name for k, noise in KINDS.items()}


@each_kind
def test_compiled_tile_has_the_closed_form(kind: str) -> None:
    weight, _, x = weights()
    found, draws = kept(kind), KEPT["settings"]["repeats"]
    assert_spread(found["std"], draws, closed_form(kind, weight, x))
    assert_white_gaussian(found, draws)


def test_kinds_differ_by_much_more_than_the_tolerance() -> None:
    weight, _, x = weights()
    ratio = closed_form("pcm_read", weight, x) / closed_form("constant", weight, x)
    assert (ratio < 0.7).all()
    assert ratio.min() < 0.1


def assert_ours_is_that_of_the_compiled_tile(kind: str, engine: Engine, draws: int) -> None:
    weight, _, x = weights()
    found, expected = statistics(our_errors(kind, engine, draws)), closed_form(kind, weight, x)
    assert_spread(found["std"], draws, kept(kind)["std"], KEPT["settings"]["repeats"])
    assert_spread(found["std"], draws, expected)
    overall = np.mean((found["std"] / expected) ** 2)
    assert abs(overall - 1) < TOLERANCE * np.sqrt(2 / (draws * expected.size))
    assert_white_gaussian(found, draws)


@each_kind
@pytest.mark.parametrize(("engine", "draws"), [("fast", 2000), ("aihwkit", 200)])
def test_ours_is_that_of_the_compiled_tile(kind: str, engine: Engine, draws: int) -> None:
    assert_ours_is_that_of_the_compiled_tile(kind, engine, draws)


@compiled
@each_kind
def test_compiled_tile_still_has_the_closed_form(kind: str) -> None:
    tiles = 4
    found = statistics(measure(kind, tiles))
    assert_spread(found["std"], tiles * REPEATS, closed_form(kind, layer()[0], inputs()))
    assert_spread(found["std"], tiles * REPEATS, kept(kind)["std"], KEPT["settings"]["repeats"])
    assert_white_gaussian(found, tiles * REPEATS)
