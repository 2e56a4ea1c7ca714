"""A run's folder of which only the exported weights are left."""

from pathlib import Path

import numpy as np
import torch

import bridge
from jaxcurv import data


def write_exported_digits(folder: Path) -> Path:
    """Exports a ResNet-18 of width 2: random but for its readout, fitted to the digits."""
    digits = data.load("digits")
    train = data.read(digits.train, range(len(digits.train)), description="train")
    normalisation = data.Normalisation.of(train.images)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.default_generator.manual_seed(0)
        network = bridge.weights.resnet18(10, stem="cifar", width=2, in_channels=1).eval()
        readout, network.fc = network.fc, torch.nn.Identity()
        images = normalisation.apply(train.images).transpose(0, 3, 1, 2)
        features = network(torch.from_numpy(images.copy())).double().numpy()
        centred = features - features.mean(0)
        targets = np.eye(10)[train.labels] - 0.1
        weight = np.linalg.lstsq(centred, targets, rcond=None)[0].T
        readout.weight.copy_(torch.from_numpy(weight))
        readout.bias.copy_(torch.from_numpy(-weight @ features.mean(0)))
        network.fc = readout
    description = {
        "architecture": "resnet18",
        "stem": "cifar",
        "width": 2,
        "num_classes": 10,
        "in_channels": 1,
        "class_names": list(digits.class_names),
        "normalisation": {"mean": normalisation.mean, "std": normalisation.std},
    }
    folder.mkdir(parents=True, exist_ok=True)
    bridge.weights.save_weights(folder / "weights.safetensors", network.state_dict(), description)
    return folder
