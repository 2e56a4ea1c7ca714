"""Programs a hundred chips in JAX: on what share of them does each image fail?"""

# --8<-- [start:function]
import jax
import numpy as np

import bridge


def logits_fn(params, images):
    return images.reshape(len(images), -1) @ params


images = np.random.default_rng(0).normal(size=(40, 28, 28, 1)).astype(np.float32)
params = jax.random.normal(jax.random.key(0), (784, 10)) / 28
labels = np.asarray(logits_fn(params, images)).argmax(1)  # so that this function is right
# --8<-- [end:function]

# --8<-- [start:chips]
made = bridge.analog(logits_fn, params, bridge.PROFILES["adc+wnoise+pcm"], images)
keys = jax.random.split(jax.random.key(0), 100)
chips = jax.vmap(made.program, (None, 0))(params, keys)
answers = jax.vmap(made.apply, (0, None))(chips, images).argmax(-1)
failing = (answers != labels).mean(0)  # for each image, the share of the chips on which it fails
print(np.sort(np.asarray(failing))[-5:])
# --8<-- [end:chips]
