"""What `benchmark curvature` times: the estimators, the published algorithm and plain passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.common import (
    random_resnet18,
    seconds,
    turns,
)
from experiments.system.devices import cores
from experiments.system.factories import call_factory
from jaxcurv.estimators import (
    Estimator,
    FiniteDifference,
    GaussNewton,
    HessianVector,
    Precision,
    named_estimators,
    nominal_passes,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from jaxcurv.data.reading import Batch
    from jaxcurv.engine.model import Problem

STEP = FiniteDifference().step
PUBLISHED, FLOOR = "published, PyTorch", "floor: n + 1 plain passes"
_COARSE: tuple[Precision, ...] = ("tensorfloat32", "bfloat16")

RATIOS = {
    "over_published": (PUBLISHED, "FiniteDifference"),
    "of_floor": (FLOOR, "FiniteDifference"),
    "gauss_newton_over_finite_difference": ("FiniteDifference", "GaussNewton"),
}
"""Each the time of the first contestant over that of the second."""

_COUNTS = ("width", "batch_size", "classes", "image_size", "probes", "repeats")

TOLERANCE = 0.1
"""A ratio may fall by this share below the baseline's: they scatter by a few hundredths."""


@dataclass(frozen=True)
class CurvatureBenchmark:
    """Measures the speed of the curvature estimators, on a ResNet-18 with random weights or on a
    torch module of your own."""

    model: str | None = None
    """Torch module to measure on, PACKAGE.MODULE:FACTORY, Python code that is run: FACTORY() takes
    no argument and returns a module in evaluation mode, for images [batch, 3, height, width].
    JAX runs what bridge.to_jax makes of it, and the published algorithm the module itself. With
    `none`, a ResNet-18."""
    width: int = 16
    """Channels of the first stage of the ResNet-18; the standard network has 64. A --model has its
    own."""
    batch_size: int = 64
    """Images per batch."""
    classes: int = 10
    """Number of classes; Gauss-Newton costs one more pass for each. A --model has its own."""
    image_size: int = 32
    """Side of the images in pixels."""
    probes: int = 10
    """Number n of random vectors per sample."""
    repeats: int = 5
    """Times that each computation runs; the median and the range are reported."""
    json: Path | None = None
    """File to write the measured figures to, NAME.json; `none` only prints them."""
    baseline: Path | None = None
    """File of an earlier measurement (--json): exit with an error if a ratio of speeds is more than
    a tenth below it; `none` compares nothing."""
    figures: Path | None = None
    """Folder for figures of cost against number of random vectors, batch size and size of the data
    set, and of peak memory. They take many times as long; `none` leaves them out."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        counts = {name: value for name in _COUNTS if (value := getattr(self, name)) < 1}
        if counts or self.classes < 2:
            raise ValueError(
                "width, batch_size, image_size, probes and repeats must be at least 1 and classes "
                f"at least 2; got {counts or self.classes}"
            )

    def measured(self) -> dict[str, int | str]:
        """The settings that decide the figures."""
        settings = {name: getattr(self, name) for name in _COUNTS}
        if self.model is None:
            return settings
        of_resnet = {"width", "classes"}
        own = {name: value for name, value in settings.items() if name not in of_resnet}
        return {"model": self.model, **own}


@dataclass(frozen=True)
class Workload:
    """A network in both frameworks, in evaluation mode on one device."""

    problem: Problem
    params: Any
    spread: Any
    """The same on every device."""
    twin: torch.nn.Module | None
    """None where JAX runs on an accelerator that torch does not see."""
    image_size: int
    classes: int

    def batch(self, size: int) -> Batch:
        """Normal images and uniform labels, the same at every call."""
        import numpy as np

        from jaxcurv.data.reading import Batch

        random = np.random.default_rng(0)
        shape = (size, self.image_size, self.image_size, 3)
        labels = random.integers(0, self.classes, size)
        return Batch(random.normal(size=shape).astype(np.float32), labels, np.arange(size))


@dataclass(frozen=True)
class Contestant:
    """A computation of one batch."""

    passes: int
    """Forward passes, and backward passes to the input."""
    run: Callable[[], object]
    """Returns when the result is there."""
    precision: Precision = "highest"


def make_workload(settings: CurvatureBenchmark) -> Workload:
    """The same network in both frameworks: a ResNet-18 with random weights, or the one given.

    Raises:
      ImportError, ValueError: the network cannot be made, is no torch module in evaluation mode, or
        does not come to JAX.
    """
    import jax
    import torch

    from jaxcurv.engine.devices import over_devices, place
    from jaxcurv.engine.losses import cross_entropy
    from jaxcurv.engine.model import Problem

    torch.set_num_threads(cores())
    network, call, params, classes = (_own if settings.model else _resnet18)(settings)
    kind = "cpu"
    if jax.default_backend() != "cpu":
        # The precision of JAX's side, and like it the fastest algorithm of those tried.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        kind = "cuda"
    twin: torch.nn.Module | None = None
    if kind == "cpu" or torch.cuda.is_available():
        twin = network.to(kind).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    problem = Problem(call, cross_entropy)
    spread = place(params, over_devices())
    return Workload(problem, params, spread, twin, settings.image_size, classes)


def _resnet18(settings: CurvatureBenchmark) -> tuple[torch.nn.Module, Any, Any, int]:
    """ResNet-18 for small images, the same random weights in both frameworks."""
    from flax import nnx

    import bridge
    from jaxcurv.engine.model import functional
    from jaxcurv.models import ResNet18

    network = random_resnet18(settings.classes, settings.width)
    model = nnx.eval_shape(
        lambda: ResNet18(settings.classes, stem="cifar", width=settings.width, rngs=nnx.Rngs(0))
    )
    model.eval()
    call, params = functional(bridge.from_torch(network.state_dict(), model), None)
    return network, call, params, settings.classes


def _own(settings: CurvatureBenchmark) -> tuple[torch.nn.Module, Any, Any, int]:
    import jax.numpy as jnp
    import numpy as np

    import bridge

    assert settings.model is not None
    network = call_factory(settings.model)
    size = settings.image_size
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    call, params = bridge.to_jax(network, images)
    return network, call, params, call(params, jnp.asarray(images)).shape[-1]


def make_contestants(workload: Workload, batch: Batch, probes: int) -> dict[str, Contestant]:
    """The published algorithm, the floor, and the estimators, by name."""
    found: dict[str, Contestant] = {}
    if workload.twin is not None:
        found[PUBLISHED] = Contestant(4 * probes, _published(workload, batch, probes))
    found[FLOOR] = Contestant(2 * (probes + 1), _floor(workload, batch, probes + 1))
    for estimator in named_estimators(probes).values():
        found[type(estimator).__name__] = _contestant(workload, batch, estimator)
    return found


def make_coarse_contestants(workload: Workload, batch: Batch, probes: int) -> dict[str, Contestant]:
    """The estimators that tolerate it, in less than float32."""
    found = {}
    for precision in _COARSE:
        for estimator in (HessianVector(probes, precision=precision), GaussNewton(precision)):
            name = f"{type(estimator).__name__}, {precision}"
            contestant = _contestant(workload, batch, estimator)
            found[name] = replace(contestant, precision=precision)
    return found


def _contestant(workload: Workload, batch: Batch, estimator: Estimator) -> Contestant:
    return Contestant(
        int(nominal_passes(estimator, workload.classes)),
        partial(_score, workload, batch, estimator),
    )


def _score(workload: Workload, batch: Batch, estimator: Estimator) -> np.ndarray:
    """A batch's scores `[batch]`, shared by the devices as `score_dataset` does it."""
    import jax

    from jaxcurv.curvature import reduce
    from jaxcurv.engine.batch import collect, dispatch
    from jaxcurv.engine.devices import over_devices

    estimators = {"score": estimator}
    sharding = over_devices() if len(batch.labels) % jax.local_device_count() == 0 else None
    pending = dispatch(
        workload.problem,
        workload.params if sharding is None else workload.spread,
        batch,
        jax.random.key(0),
        estimators,
        sharding=sharding,
    )
    return reduce(collect(pending, batch.indices), estimators, {}, matrix="")["score"].score


def _published(workload: Workload, batch: Batch, probes: int) -> Callable[[], object]:
    import torch

    from experiments.benchmarks.published_score import published_curvature

    twin = workload.twin
    assert twin is not None
    place = next(twin.parameters()).device
    images = torch.from_numpy(batch.images.transpose(0, 3, 1, 2)).to(place)
    labels = torch.from_numpy(batch.labels).to(place)
    generator = torch.Generator(place).manual_seed(0)

    def score() -> object:
        scores = published_curvature(
            twin, images, labels, step=STEP, probes=probes, generator=generator
        )
        return scores.cpu()

    return score


def _floor(workload: Workload, batch: Batch, count: int) -> Callable[[], object]:
    """`count` forward and input-backward passes of one batch and nothing else."""
    import jax
    import jax.numpy as jnp

    problem = workload.problem
    leaves, structure = jax.tree.flatten(workload.params)

    @jax.jit
    def gradient(leaves: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        params = jax.tree.unflatten(structure, leaves)
        return jax.grad(lambda x: jnp.sum(problem.loss(problem.model(params, x), y)))(x)

    x, y = jnp.asarray(batch.images), jnp.asarray(batch.labels, jnp.int32)

    def repeat() -> object:
        with jax.default_matmul_precision("highest"):
            return jax.block_until_ready([gradient(leaves, x, y) for _ in range(count)])

    return repeat


def measure(contestants: Mapping[str, Contestant], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat by contestant, after one run of each that compiles it."""
    for contestant in contestants.values():
        contestant.run()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for names in turns(contestants, repeats):
        for name in names:
            times[name].append(seconds(contestants[name].run))
    return times
