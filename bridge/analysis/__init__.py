"""Which samples fail and what predicts it: arrays in, tables out; needs neither torch nor JAX.

Deciles and failure rates are in `failures`, scores side by side in `predictors`.
"""

from jaxcurv.gaussian_flips import gaussian_flip_probability as gaussian_flip_probability
from jaxcurv.logit_scores import logit_scores as logit_scores
