"""Which samples to run on the digital model: curves, thresholds, guarantees, a live
router, a tiny network that scores them."""

from jaxcurv import faces

__getattr__, __dir__, __all__ = faces.attach(__name__, __file__, extra="bridge")
