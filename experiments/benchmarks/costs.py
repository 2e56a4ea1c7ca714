"""What each score costs in forward passes: the constants of `jaxcurv.costs`, measured.

The method is that of `experiments.benchmarks.common`. A forward pass is short: a few of them are
timed right before and right after each contestant, and its cost is its time over their mean. On a
CPU the time is that of the process on all cores, which other work disturbs less than it does the
clock on the wall. All run on JAX's default device, compiled, without checks. What grows with the
number of probes, dimensions or classes is measured at two of them, and a line put through both in
each repeat.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments.benchmarks.common import (
    load_average,
    new_table,
    require_json_path,
    span,
    summary,
    turns,
    warn_of_load,
)
from experiments.system.devices import cores, device
from experiments.system.environment import package_versions
from experiments.system.errors import at_work
from jaxcurv.estimators import (
    Estimator,
    FiniteDifference,
    GaussNewton,
    HessianVector,
    LowRankGaussNewton,
)
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import write_json

if TYPE_CHECKING:
    import jax

    from jaxcurv.data.reading import Batch
    from jaxcurv.engine.model import Problem

FEW, MANY = 2, 10
"""Probes, or dimensions of a subspace, at the ends of a line."""

_FORWARDS = 3
"""Forward passes before and after each contestant."""

_VARIANCE = 1e-4
"""Variance of each weight under the noise whose margin moments are timed."""


@dataclass(frozen=True)
class CostsBenchmark:
    """Measures what each score costs in forward passes, on a ResNet-18 with random weights."""

    width: int = 16
    """Channels of the first stage; the standard network has 64."""
    batch_size: int = 64
    """Images per batch."""
    classes: int = 10
    """Number of classes."""
    many_classes: int = 100
    """Number of classes of a second network, for what Gauss-Newton takes for each."""
    image_size: int = 32
    """Side of the images in pixels."""
    repeats: int = 9
    """Times that each computation runs; the median and the range are reported."""
    json: Path | None = None
    """File to write the measured figures to, NAME.json; `none` only prints them."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        counts = {**self.measured(), "repeats": self.repeats}
        if wrong := {name: value for name, value in counts.items() if value < 1}:
            raise ValueError(f"counts must be at least 1; got {wrong}")
        if self.classes <= MANY - 1:
            raise ValueError(
                f"--classes must be at least {MANY}, for a subspace of {MANY - 1} dimensions or "
                f"more; got {self.classes}"
            )
        if self.many_classes <= self.classes:
            raise ValueError(
                f"--many-classes must be more than --classes; got {self.many_classes} and "
                f"{self.classes}"
            )

    def measured(self) -> dict[str, int]:
        """The settings that decide what is computed."""
        names = ("width", "batch_size", "classes", "many_classes", "image_size")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Workload:
    """A network with random weights in evaluation mode, on JAX's default device, and a batch."""

    problem: Problem
    params: Any
    batch: Batch


@dataclass(frozen=True)
class Contestant:
    """A computation of one batch, and the forward pass that it is compared with."""

    forward: Callable[[], object]
    run: Callable[[], object]
    """Both return when the result is there."""


def run(settings: CostsBenchmark) -> None:
    """Measures, prints and writes what is asked for.

    Raises:
      ValueError, OSError, ModuleNotFoundError: it cannot start.
      WorkFailed: the measurement failed.
    """
    versions = package_versions(("jax", "flax"))
    if settings.json is not None:
        require_json_path(settings.json)
    with at_work():
        report = {**measure_all(settings), "versions": versions}
        show(report, Console(highlight=False))
        if settings.json is not None:
            write_json(settings.json, report)


def measure_all(settings: CostsBenchmark) -> dict[str, Any]:
    """The report, as JSON has it: constants, ratios and circumstances."""
    import jax

    load = load_average()
    ratios = measure(make_contestants(settings), settings.repeats)
    return {
        "constants": {
            name: summary(values) for name, values in constants(ratios, settings).items()
        },
        "ratios": {name: summary(values) for name, values in ratios.items()},
        "settings": {**settings.measured(), "repeats": settings.repeats},
        "device": device(),
        "backend": jax.default_backend(),
        "clock": "CPU time" if jax.default_backend() == "cpu" else "wall",
        "cores": cores(),
        "load_before": load,
        "load_after": load_average(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def make_workload(settings: CostsBenchmark, classes: int) -> Workload:
    """A ResNet-18 for small images, normal images and uniform labels; the same at every call."""
    import numpy as np
    from flax import nnx

    import jaxcurv.models
    from jaxcurv.data.reading import Batch
    from jaxcurv.engine.losses import cross_entropy
    from jaxcurv.engine.model import Problem, functional

    model = jaxcurv.models.ResNet18(classes, stem="cifar", width=settings.width, rngs=nnx.Rngs(0))
    model.eval()
    function, params = functional(model, None)
    random = np.random.default_rng(0)
    shape = (settings.batch_size, settings.image_size, settings.image_size, 3)
    images = random.normal(size=shape).astype(np.float32)
    labels = random.integers(0, classes, settings.batch_size)
    batch = Batch(images, labels, np.arange(settings.batch_size))
    return Workload(Problem(function, cross_entropy), params, batch)


def make_contestants(settings: CostsBenchmark) -> dict[str, Contestant]:
    """What is timed, by name."""
    few, many = (make_workload(settings, n) for n in (settings.classes, settings.many_classes))
    scored: dict[str, tuple[Workload, dict[str, Estimator]]] = {
        "gradient": (few, {}),
        "finite_difference_few": (few, {"score": FiniteDifference(probes=FEW)}),
        "finite_difference_many": (few, {"score": FiniteDifference(probes=MANY)}),
        "hessian_vector_few": (few, {"score": HessianVector(FEW)}),
        "hessian_vector_many": (few, {"score": HessianVector(MANY)}),
        "gauss_newton_few": (few, {"score": GaussNewton()}),
        "gauss_newton_many": (many, {"score": GaussNewton()}),
        "low_rank_few": (few, {"score": LowRankGaussNewton(FEW, FEW)}),
        "low_rank_many_dimensions": (few, {"score": LowRankGaussNewton(MANY - 1, FEW)}),
        "low_rank_many_probes": (few, {"score": LowRankGaussNewton(FEW, MANY)}),
    }
    forward = {id(one): _forward(one) for one in (few, many)}
    found = {
        name: Contestant(forward[id(one)], partial(_score, one, estimators))
        for name, (one, estimators) in scored.items()
    }
    found["margin"] = Contestant(forward[id(few)], _margins(few, noisy=False))
    found["margin_moments"] = Contestant(forward[id(few)], _margins(few, noisy=True))
    return found


def _forward(workload: Workload) -> Callable[[], object]:
    """One compiled forward pass of the batch, which is on the device already."""
    import jax
    import jax.numpy as jnp

    leaves, structure = jax.tree.flatten(jax.device_put(workload.params))

    @jax.jit
    def logits(leaves: list[jax.Array], images: jax.Array) -> jax.Array:
        return workload.problem.model(jax.tree.unflatten(structure, leaves), images)

    images = jnp.asarray(workload.batch.images)

    def once() -> object:
        with jax.default_matmul_precision("highest"):
            return jax.block_until_ready(logits(leaves, images))

    return once


def _score(workload: Workload, estimators: Mapping[str, Estimator]) -> object:
    """A batch's scores from their probes, as `score_dataset` computes them, on one device."""
    import jax

    from jaxcurv.curvature import reduce
    from jaxcurv.engine.batch import collect, dispatch

    batch = workload.batch
    pending = dispatch(workload.problem, workload.params, batch, jax.random.key(0), estimators)
    return reduce(collect(pending, batch.indices), estimators, {}, matrix="")


def _margins(workload: Workload, *, noisy: bool) -> Callable[[], object]:
    """A batch's margins, and their moments under noise of every matrix and kernel."""
    import jax
    import numpy as np

    from jaxcurv.margins import OWN, Moments, inspected_margins

    variance = jax.tree.map(
        lambda leaf: np.full(leaf.shape, _VARIANCE if leaf.ndim > 1 else 0.0), workload.params
    )
    noises = {"noise": Moments(None, variance)} if noisy else {}
    images, _, indices = workload.batch
    margins = inspected_margins(workload.problem.model, workload.params, noises, images)
    return partial(margins, images, np.full(len(images), OWN, np.int32), indices)


def measure(contestants: Mapping[str, Contestant], repeats: int) -> dict[str, list[float]]:
    """Cost of every repeat by contestant, after one run of each that compiles it."""
    for contestant in contestants.values():
        contestant.forward()
        contestant.run()
    costs: dict[str, list[float]] = {name: [] for name in contestants}
    with progress(repeats * len(contestants), "costs") as shown:
        for names in turns(contestants, repeats):
            for name in names:
                one = contestants[name]
                before = [_seconds(one.forward) for _ in range(_FORWARDS)]
                taken = _seconds(one.run)
                after = [_seconds(one.forward) for _ in range(_FORWARDS)]
                costs[name].append(taken / statistics.mean([*before, *after]))
                shown.update(1)
    return costs


def _seconds(run: Callable[[], object]) -> float:
    """The CPU time of a call, or on an accelerator the time that passed."""
    import jax

    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    started = clock()
    run()
    return clock() - started


def constants(
    ratios: Mapping[str, list[float]], settings: CostsBenchmark
) -> dict[str, list[float]]:
    """The constants of `jaxcurv.costs` in each repeat, by name.

    Args:
      ratios: cost of every repeat by contestant, as `measure` returns it.
      settings: what was measured.
    """

    def slope(first: str, last: str, apart: int) -> list[float]:
        pairs = zip(ratios[first], ratios[last], strict=True)
        return [(b - a) / apart for a, b in pairs]

    def base(first: str, *parts: tuple[int, list[float]]) -> list[float]:
        return [
            cost - sum(count * each[repeat] for count, each in parts)
            for repeat, cost in enumerate(ratios[first])
        ]

    probe = slope("finite_difference_few", "finite_difference_many", MANY - FEW)
    product = slope("hessian_vector_few", "hessian_vector_many", MANY - FEW)
    further = settings.many_classes - settings.classes
    column = slope("gauss_newton_few", "gauss_newton_many", further)
    dimension = slope("low_rank_few", "low_rank_many_dimensions", MANY - 1 - FEW)
    outside = slope("low_rank_few", "low_rank_many_probes", MANY - FEW)
    return {
        "gradient_norm": ratios["gradient"],
        "finite_difference_base": base("finite_difference_few", (FEW, probe)),
        "finite_difference_each": probe,
        "hessian_vector_base": base("hessian_vector_few", (FEW, product)),
        "hessian_vector_each": product,
        "gauss_newton_base": base("gauss_newton_few", (settings.classes - 1, column)),
        "gauss_newton_each": column,
        "low_rank_base": base("low_rank_few", (FEW, dimension), (FEW, outside)),
        "low_rank_dimension": dimension,
        "low_rank_probe": outside,
        "margin": ratios["margin"],
        "margin_moments": ratios["margin_moments"],
    }


def show(report: Mapping[str, Any], console: Console) -> None:
    """Prints a report."""
    settings = report["settings"]
    console.print(
        f"ResNet-18 of width {settings['width']}, {settings['classes']} and "
        f"{settings['many_classes']} classes, batch of {settings['batch_size']} images of "
        f"{settings['image_size']}x{settings['image_size']}, {settings['repeats']} repeats"
    )
    warn_of_load(report["load_before"], console)
    for what, title in (("ratios", "time in forward passes"), ("constants", "constant")):
        table = new_table((title, "median", "range"))
        for name, one in report[what].items():
            table.add_row(name, f"{one['median']:.2f}", span(one, 2))
        console.print(table)
