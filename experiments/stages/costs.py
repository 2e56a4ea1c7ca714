"""What each score takes, measured: seconds an image on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from flax import nnx

from jaxcurv.data.reading import Batch
from jaxcurv.engine.batch import PRECISION, collect, dispatch
from jaxcurv.engine.devices import over_devices, place
from jaxcurv.engine.losses import cross_entropy
from jaxcurv.engine.model import LogitsFn, Problem, functional
from jaxcurv.estimators import Estimator

_REPEATS = 3


def seconds_per_image(
    model: LogitsFn | nnx.Module, params: Any, batch: Batch, estimators: Mapping[str, Estimator]
) -> dict[str, float]:
    """The median of a few runs of one batch, compiled before, by name.

    Beside each estimator alone: "loss", one forward pass, and "gradient_norm", one more backward
    pass to the input.

    Args:
      model, params: the network, in evaluation mode, as `score_dataset` takes it.
      batch: as `score_dataset` would make them; its size a multiple of the devices.
      estimators: what is measured, by name.
    """
    function, weights = functional(model, params)
    problem = Problem(function, cross_entropy)
    sharding = over_devices()
    placed = place(weights, sharding)
    key = jax.random.key(0)
    images = jax.device_put(batch.images, sharding)

    def forward() -> None:
        with jax.default_matmul_precision(PRECISION):
            jax.block_until_ready(_logits(function, placed, images))

    def score(some: Mapping[str, Estimator]) -> None:
        collect(dispatch(problem, placed, batch, key, some, sharding=sharding), batch.indices)

    work: dict[str, Callable[[], None]] = {"loss": forward, "gradient_norm": partial(score, {})}
    work |= {name: partial(score, {name: one}) for name, one in estimators.items()}
    return {name: _median(once) / len(batch.labels) for name, once in work.items()}


@partial(jax.jit, static_argnames="function")
def _logits(function: Callable, params: Any, images: jax.Array) -> jax.Array:
    return function(params, images)


def _median(work: Callable[[], None]) -> float:
    work()
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
