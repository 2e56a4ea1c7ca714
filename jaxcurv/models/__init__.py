"""Flax NNX models whose parameter paths mirror torchvision's names."""

from jaxcurv.models.resnet import ResNet, ResNet18, ResNet50

__all__ = ["ResNet", "ResNet18", "ResNet50"]
