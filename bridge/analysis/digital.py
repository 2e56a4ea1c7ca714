"""Scores that the digital model's logits give; the code is jaxcurv's."""

from jaxcurv.gaussian_flips import gaussian_flip_probability as gaussian_flip_probability
from jaxcurv.logit_scores import logit_scores as logit_scores
