"""How one batch is computed: the model and its checks, probes, losses, compiled programs."""

from jaxcurv import faces

__getattr__, __dir__, __all__ = faces.attach(__name__, __file__)
