"""Checkpoints and twins of whole ResNets, in torchvision's sizes and in narrow ones."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from bridge import to_torch
from bridge.weights import load_checkpoint, twin
from tests.bridge.weights.test_checkpoints import (
    LISTING,
    assert_logits_are_torchvision_s,
    images,
    logits_of_torch,
    of_torchvision,
    random_state_dict,
    torchvision_models,  # noqa: F401
)
from tests.bridge.weights.test_state import TORCH, flax_resnet, logits_of_flax, relative_error

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_logits_of_torchvision_s_sizes(tmp_path: Path, name: str) -> None:
    shapes = {key: tuple(shape) for key, shape in LISTING[name].items()}
    state_dict = random_state_dict(shapes)
    torch.save(state_dict, tmp_path / f"{name}.pth")
    model = of_torchvision(load_checkpoint(tmp_path / f"{name}.pth").state_dict, name)
    exported = to_torch(model)
    assert {key: tuple(tensor.shape) for key, tensor in exported.items()} == shapes
    reference = TORCH[name]()
    assert {key: tuple(t.shape) for key, t in reference.state_dict().items()} == shapes
    reference.load_state_dict(exported)
    pixels = images(64)
    expected = logits_of_torch(reference.eval(), pixels)
    assert expected.shape == (2, 1000)
    assert relative_error(logits_of_flax(model, pixels), expected) < 1e-4


def test_logits_are_torchvision_s(torchvision_models: ModuleType) -> None:  # noqa: F811
    assert_logits_are_torchvision_s(torchvision_models, "resnet50")


@pytest.mark.parametrize("size", [20, 33])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_twin(name: str, stem: str, size: int) -> None:
    model = flax_resnet(name, stem)
    model.train()
    before = torch.get_rng_state()
    network = twin(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.bn1.use_running_average
    assert not any(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.state_dict().keys() == TORCH[name]().state_dict().keys()
    model.eval()
    actual = logits_of_torch(network, images(size))
    assert relative_error(actual, logits_of_flax(model, images(size))) < 1e-5
