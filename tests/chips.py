"""Small networks and configurations that the tests of chips share."""

import weakref
from collections import OrderedDict
from typing import Any, Literal

import numpy as np
import torch
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bridge import Profile
from bridge.analysis import logit_scores
from bridge.chips import ADC, PCM, WeightNoise
from bridge.chips.weight_noise import MvmNoiseTile
from bridge.weights.resnet import BasicBlock, ResNet
from jaxcurv import data

IMAGES = torch.tensor(np.random.default_rng(5).normal(size=(32, 3, 8, 8)).astype(np.float32))
NEUTRAL = {
    "inp_res": -1.0,
    "inp_noise": 0.0,
    "out_noise": 0.0,
    "noise_management": NoiseManagementType.ABS_MAX,
    "bound_management": BoundManagementType.NONE,
}


class LiveLogits:
    """`logit_scores`, which counts the samples whose logits are in memory at once."""

    def __init__(self) -> None:
        self.seen = self.now = self.most = 0

    def __call__(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        self.seen += len(logits)
        self.now += len(logits)
        self.most = max(self.most, self.now)
        weakref.finalize(logits, self._freed, len(logits))
        return logit_scores(logits)

    def _freed(self, count: int) -> None:
        self.now -= count


class TorchCopies(TorchDispatchMode):
    """The number of elements of the largest copy that PyTorch makes within it."""

    largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.clone.default, torch.ops.aten.cat.default):
            self.largest = max(self.largest, found.numel())
        return found


def configuration(
    size: int = 20, columnwise: bool = False, **forward: object
) -> TorchInferenceRPUConfig:
    """AIHWKit's, on small tiles, without programming noise or drift."""
    config = TorchInferenceRPUConfig(simulator_tile_class=MvmNoiseTile)
    config.mapping = MappingParameter(
        digital_bias=True,
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=columnwise,
        max_input_size=size,
        max_output_size=size,
    )
    config.forward = IOParameters(**{**NEUTRAL, **forward})
    config.drift_compensation = None
    config.noise_model.prog_noise_scale = 0.0
    config.noise_model.read_noise_scale = 0.0
    config.noise_model.drift_scale = 0.0
    return config


class Blocks(nn.Module):
    """Weights on tiles and a digital convolution, and much that is code or a setting."""

    def __init__(self, **changed: Any):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
            self.digital, self.fc = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 10)
            self.norm.running_var.uniform_(0.01, 0.1)
        self.act, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.after, self.scale = (lambda x: x), 1.0
        for name, value in changed.items():
            setattr(self, name, value)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.conv(x)))
        return self.after(self.fc(self.pool(self.digital(x)).flatten(1)) * self.scale)


def changed_blocks(name: str) -> nn.Module:
    """The same weights, and another activation, hook, setting or code between the layers."""
    model: Any = Blocks()
    if name == "activation":
        model.act = nn.GELU()
    elif name == "slope":
        model.act = nn.LeakyReLU(0.01)
    elif name == "approximation":
        model.act = nn.GELU(approximate="tanh")
    elif name == "hook":
        model.norm.register_forward_hook(halving)
    elif name == "pre-hook":
        model.fc.register_forward_pre_hook(lambda layer, args: (args[0] + 0.1,))
    elif name == "eps":
        model.norm.eps = 1e-4
    elif name == "stride":
        model.digital.stride = (2, 2)
    elif name == "padding":
        model.digital.padding_mode = "reflect"
        model.digital._reversed_padding_repeated_twice = [1, 1, 1, 1]
    elif name == "pooling":
        model.pool = nn.AdaptiveMaxPool2d(1)
    elif name == "between":
        model.after = lambda x: x - x.mean(1, keepdim=True)
    elif name == "a number":
        model.scale = 1.001
    elif name == "outputs":
        model.after = lambda x: x[:, :9]
    elif name == "fails":
        model.after = lambda x: x @ x
    return model.eval()


def halving(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return output / 2


def single(layer: nn.Module, seed: int = 0) -> nn.Module:
    """A network of one layer, `layer`, with normal weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return nn.Sequential(OrderedDict(layer=layer)).eval().requires_grad_(False)


def small_resnet(width: int = 16) -> nn.Module:
    """Three blocks, 10 classes; with the default width, layers of one and of two tiles."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = ResNet(BasicBlock, (1, 1, 1, 0), 10, "cifar", width, in_channels=3)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model.eval()


def digits_network() -> nn.Module:
    """Two layers: a random one, and a readout that least squares fits to the digits."""
    digits = data.load("digits")
    train = data.read(digits.train, range(len(digits.train)), description="train")
    pixels = data.Normalisation.of(train.images).apply(train.images)
    network = nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden=single(nn.Linear(64, 24)).layer,
            relu=nn.ReLU(),
            fc=nn.Linear(24, 10),
        )
    ).eval()
    network.requires_grad_(False)
    features = network[:3](torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).double()
    with_one = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    targets = torch.eye(10, dtype=torch.float64)[torch.from_numpy(train.labels).long()]
    solution = torch.linalg.lstsq(with_one, targets).solution
    network.fc.weight.copy_(solution[:-1].T)
    network.fc.bias.copy_(solution[-1])
    return network


def noisy(
    kind: Literal["constant", "pcm_read"],
    sigma: float = 0.02,
    adc: ADC | None = None,
    pcm: bool = False,
) -> Profile:
    """A profile with weight noise in each operation."""
    return Profile(adc, WeightNoise(sigma, kind, "per_mvm"), PCM() if pcm else None)
