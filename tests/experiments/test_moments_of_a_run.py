"""Whose weights' moments, and whose noise of operations, a run's profiles have."""

import pytest

from bridge.chips import PCM, WeightNoise, named_profiles
from experiments.stages.flips import _operations_of, _weights_of


@pytest.mark.parametrize(
    ("name", "weights", "operations"),
    [
        ("ideal", "ideal", "ideal"),
        ("adc", "ideal", "adc"),
        ("adc_coarse", "ideal", "adc_coarse"),
        ("wnoise", "wnoise", "ideal"),
        ("wnoise_mvm", "ideal", "wnoise_mvm"),
        ("pcm_gdc", "pcm_gdc", "ideal"),
        ("adc+wnoise+pcm", "wnoise+pcm", "adc"),
        ("adc+wnoise+pcm_gdc", "wnoise+pcm_gdc", "adc"),
    ],
)
def test_names_tell_what_is_in_a_profile(name: str, weights: str, operations: str) -> None:
    profile = named_profiles()[name]
    found, of_weights = _weights_of(name, profile)
    assert found == weights
    assert of_weights.memory == profile.memory
    assert of_weights.adc is None
    assert of_weights.noise_of_operations is None
    other, of_operations = _operations_of(name, profile)
    assert other == operations
    assert of_operations.adc == profile.adc
    assert of_operations.memory is None
    assert of_operations.wnoise == profile.noise_of_operations


def test_weight_noise_of_operations_leaves_the_weights_as_they_are() -> None:
    """As `--simulate.wnoise.drawn per_mvm` has it, for every profile with wnoise."""
    profiles = named_profiles(wnoise=WeightNoise(drawn="per_mvm"))
    assert _weights_of("adc+wnoise", profiles["adc+wnoise"])[0] == "ideal"
    name, weights = _weights_of("adc+wnoise+pcm", profiles["adc+wnoise+pcm"])
    assert (name, weights.memory, weights.wnoise) == ("pcm", PCM(), None)
    assert _operations_of("adc+wnoise+pcm", profiles["adc+wnoise+pcm"])[0] == "adc+wnoise"
