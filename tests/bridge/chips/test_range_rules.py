"""The rules of calibrated ranges, which chips in torch and in JAX share."""

import math
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge import Profile
from bridge.chips import ADC, DAC
from bridge.chips.range_rules import INPUTS, OUTPUTS, Given, chosen_ranges, not_below

RNG = np.random.default_rng(0)
IMAGES = np.abs(RNG.normal(size=(6, 8))).astype(np.float32)


@pytest.mark.parametrize("percentile", [0.01, 33.3, 50.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("count", [1, 2, 7, 1000, 3000])
def test_nearest_rank_is_numpys_inverted_cdf(count: int, percentile: float) -> None:
    values = np.arange(count)
    # In hundredths, which floats hold: 99.9 % of 3,000 is 2,997 exactly.
    rank = -(-count * round(percentile * 100) // 10_000)
    assert count - not_below(count, percentile) == rank - 1
    if percentile in (50.0, 100.0):
        assert rank - 1 == np.percentile(values, percentile, method="inverted_cdf")


def test_dead_and_sparse_converters() -> None:
    given = {"a": Given(2.0, 3.0), "b": Given(0.0, 0.0), "c": Given(0.0, 1.5), "d": Given(8.0, 9.0)}
    scales = {"a": 2.0, "b": 10.0, "c": 0.5, "d": 2.0}
    with pytest.warns(UserWarning, match="on the calibration images") as told:
        found = chosen_ranges(given, scales, 90.0, OUTPUTS, black=False, stacklevel=2)
    assert found == {"a": 2.0, "b": 30.0, "c": 1.5, "d": 8.0}  # the median of 1, 3 and 4
    assert [f"{one.message}" for one in told] == [
        "no output other than 0 on the calibration images: tile b; each gets the ADC range 3 (for "
        "a largest weight of 1), the median of the other tiles",
        "percentile 90 of the outputs on the calibration images is 0: tile c; each gets its "
        "largest output as its ADC range",
    ]
    with pytest.warns(UserWarning, match="layer b; each gets the DAC range 1$"):
        found = chosen_ranges({"b": Given(0, 0)}, {"b": 3.0}, 90, INPUTS, black=False, stacklevel=2)
    assert found == {"b": 3.0}


@pytest.mark.parametrize("largest", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_wherever_it_ranks(largest: float) -> None:
    with pytest.raises(ValueError, match=f"layer a the DAC range {largest}; use images"):
        chosen_ranges(
            {"a": Given(1.0, largest)}, {"a": 1.0}, 50.0, INPUTS, black=False, stacklevel=2
        )


@pytest.mark.parametrize(
    ("profile", "in_torch_named", "in_jax_named"),
    [
        (Profile(ADC()), "tile 2.analog_module;", "tile 0 of 2.weight;"),
        (Profile(dac=DAC(range="calibrated")), "layer 2;", "layer 2.weight;"),
    ],
)
def test_both_kinds_of_chips_say_the_same(
    profile: Profile, in_torch_named: str, in_jax_named: str
) -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4)).eval().requires_grad_(False)
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.data = torch.randn(parameter.shape, generator=generator)
    model[0].bias.fill_(-100.0)  # nothing reaches the last layer
    model[2].bias.zero_()
    params = {name: jnp.asarray(value.numpy()) for name, value in model.state_dict().items()}

    def logits(p: dict[str, jnp.ndarray], x: jnp.ndarray) -> jnp.ndarray:
        hidden = jnp.maximum(x @ p["0.weight"].T + p["0.bias"], 0)
        return hidden @ p["2.weight"].T + p["2.bias"]

    with warnings.catch_warnings(record=True) as in_torch:
        warnings.simplefilter("always")
        bridge.program(model, profile, seed=0, calibration=torch.from_numpy(IMAGES))
    with warnings.catch_warnings(record=True) as in_jax:
        warnings.simplefilter("always")
        bridge.analog(logits, params, profile, IMAGES)
    (one,), (other,) = ([f"{w.message}" for w in told] for told in (in_torch, in_jax))
    assert one.replace(in_torch_named, in_jax_named) == other
    assert {w.filename for w in (*in_torch, *in_jax)} == {__file__}
