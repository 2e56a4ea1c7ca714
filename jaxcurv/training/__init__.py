"""Training of Flax NNX classifiers."""

from jaxcurv import faces

__getattr__, __dir__, __all__ = faces.attach(__name__, __file__)
