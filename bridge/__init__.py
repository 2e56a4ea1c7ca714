"""From trained weights to analog chips, their predictions and their failures."""

from bridge import failures
from bridge.chip import Chip, clipped_share, program
from bridge.inference import predict
from bridge.profiles import ADC, PCM, PROFILES, Clipping, Profile, WeightNoise, profiles
from bridge.resnet import resnet18, resnet50
from bridge.weights import from_torch, load_weights, save_weights, to_torch

__all__ = [
    "ADC",
    "PCM",
    "PROFILES",
    "Chip",
    "Clipping",
    "Profile",
    "WeightNoise",
    "clipped_share",
    "failures",
    "from_torch",
    "load_weights",
    "predict",
    "profiles",
    "program",
    "resnet18",
    "resnet50",
    "save_weights",
    "to_torch",
]
