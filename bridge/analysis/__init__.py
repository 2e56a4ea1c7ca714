"""Which samples fail and what predicts it: arrays in, tables out; needs neither torch nor JAX.

Deciles and failure rates are in `failures`, scores side by side in `predictors`.
"""

from jaxcurv import faces

__getattr__, __dir__, __all__ = faces.attach(__name__, __file__, extra="bridge")
