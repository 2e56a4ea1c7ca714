"""Scores images by an estimator of your own: the squared norm of the loss's gradient."""

# --8<-- [start:estimator]
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import jaxcurv


@dataclass(frozen=True)
class SquaredGradient:
    """|| grad_x L ||^2 times a factor."""

    factor: float = 1.0

    def estimate(self, problem):
        gradient = problem.base_gradient.reshape(len(problem.images), -1)
        return {"score": self.factor * jnp.square(gradient).sum(1)}

    def forward_passes(self, classes):
        return 2.0


# --8<-- [end:estimator]


# --8<-- [start:scores]
def logits_fn(params, images):
    return images.reshape(len(images), -1) @ params


images = np.random.default_rng(0).normal(size=(40, 28, 28, 1)).astype(np.float32)
params = jax.random.normal(jax.random.key(0), (784, 10)) / 28
both = {"curvature": jaxcurv.FiniteDifference(), "mine": SquaredGradient()}
data = (images, np.arange(40) % 10)
scores = jaxcurv.score_dataset(
    logits_fn, data, params=params, estimators=both, out="scores.parquet"
)
print(scores[["curvature", "mine"]].corr("spearman"))
# --8<-- [end:scores]
