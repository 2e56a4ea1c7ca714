"""Scores a Flax model: for which images does its loss surface bend most?"""

# --8<-- [start:model]
import jax
import numpy as np
from flax import linen

import jaxcurv

rng = np.random.default_rng(0)
images = rng.normal(size=(40, 28, 28, 1)).astype(np.float32)  # normalised as the model expects
model = linen.Sequential(
    [lambda x: x.reshape(len(x), -1), linen.Dense(32), jax.nn.relu, linen.Dense(10)]
)
variables = model.init(jax.random.key(0), images)
labels = np.asarray(model.apply(variables, images)).argmax(1)  # so that this model is right
# --8<-- [end:model]

# --8<-- [start:scores]
scores = jaxcurv.score_dataset(model.apply, (images, labels), params=variables)
print(scores.nlargest(20, "curvature")[["index", "label", "prediction", "curvature"]])
# --8<-- [end:scores]
