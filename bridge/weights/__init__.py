"""Weights between Flax and PyTorch, checkpoints, and the torch ResNet."""

from jaxcurv import faces

__getattr__, __dir__, __all__ = faces.attach(__name__, __file__, extra="bridge")
