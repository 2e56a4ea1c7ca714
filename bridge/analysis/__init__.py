"""Which samples fail and what predicts it: arrays in, tables out; needs neither torch nor JAX."""

from jaxcurv.logit_scores import logit_scores as logit_scores
