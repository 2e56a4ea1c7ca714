"""The device of own_device.py in AIHWKit, for chips of a PyTorch network."""

from own_device import Decaying

# isort: split
# --8<-- [start:device]
from dataclasses import dataclass

import numpy as np
import torch
from aihwkit.inference.converter.conductance import SinglePairConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel

import bridge


class Conductances(BaseNoiseModel):
    """A memory's errors as AIHWKit asks for them, in microsiemens; the largest weight has 25."""

    def __init__(self, memory):
        super().__init__(SinglePairConductanceConverter(g_max=25.0))
        self.memory = memory

    def apply_programming_noise_to_conductance(self, g_target):
        each = self.memory.spread / 2**0.5  # a weight is the difference of two conductances
        return g_target + each * 25.0 * torch.randn_like(g_target)

    def apply_drift_noise_to_conductance(self, g_prog, nu, t):
        return g_prog * (1 + t) ** -self.memory.nu


@dataclass(frozen=True)
class DecayingInTorch(Decaying):
    """The same device, also for chips of a PyTorch network."""

    def noise_model(self):
        return Conductances(self)


# --8<-- [end:device]


# --8<-- [start:chip]
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()
images = np.random.default_rng(0).normal(size=(40, 28, 28, 1)).astype(np.float32)
labels = network(torch.from_numpy(images)).argmax(1).numpy()
profile = bridge.Profile(memory=DecayingInTorch(t_inference=3600.0))
chip = bridge.program(network, profile, seed=0)
print(bridge.predict(chip, (images, labels))["correct"].mean())
# --8<-- [end:chip]
