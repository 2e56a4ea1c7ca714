"""How fast curvature is: the estimators against each other, the published algorithm and a floor.

See `experiments.benchmark` for the method.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments.benchmark import (
    conclude,
    cores,
    load_average,
    new_table,
    processor,
    random_resnet18,
    read_baseline,
    require_folder,
    require_json_path,
    seconds,
    span,
    summary,
    turns,
    warn_of_load,
)
from experiments.errors import at_work
from experiments.pipeline import package_versions
from jaxcurv.estimators import (
    Estimator,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
    Precision,
    forward_passes,
)
from jaxcurv.sealed import write_json

if TYPE_CHECKING:
    import numpy as np
    import torch

    from jaxcurv.engine import Batch
    from jaxcurv.problem import Problem

STEP = 1e-3
PUBLISHED, FLOOR = "published, PyTorch", "floor: n + 1 plain passes"

RATIOS = {
    "over_published": (PUBLISHED, "FiniteDifference"),
    "of_floor": (FLOOR, "FiniteDifference"),
    "gauss_newton_over_finite_difference": ("FiniteDifference", "GaussNewton"),
}
"""Each the time of the first contestant over that of the second."""

TOLERANCE = 0.1
"""A ratio may fall by this share below the baseline's: they scatter by a few hundredths."""


@dataclass(frozen=True)
class CurvatureBenchmark:
    """Speed of the estimators on a ResNet-18 with random weights."""

    width: int = 16
    """Channels of the first stage; 64 is the standard network."""
    batch_size: int = 64
    """Images a batch."""
    classes: int = 10
    """Of the network; Gauss-Newton costs one pass more for each."""
    image_size: int = 32
    """Pixels a side."""
    probes: int = 10
    """n, the random vectors a sample."""
    repeats: int = 5
    """How often each contestant runs; medians are reported, with the range."""
    json: Path | None = None
    """Also write the figures here."""
    baseline: Path | None = None
    """Fail when a ratio is more than a tenth below that of this earlier JSON."""
    figures: Path | None = None
    """Folder: also measure and draw cost against n, batch size and data-set size, and peak
    memory. Takes many times as long."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        counts = {name: value for name, value in self.measured().items() if value < 1}
        if counts or self.classes < 2:
            raise ValueError(
                "width, batch_size, image_size, probes and repeats must be at least 1 and classes "
                f"at least 2; got {counts or self.classes}"
            )

    def measured(self) -> dict[str, int]:
        """The settings that decide the figures."""
        names = ("width", "batch_size", "classes", "image_size", "probes", "repeats")
        return {name: getattr(self, name) for name in names}


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

        from jaxcurv.engine import Batch

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


@dataclass(frozen=True)
class Peak:
    """Dense rates of a card in FLOP/s, from its data sheet."""

    float32: float
    tensorfloat32: float


PEAKS: tuple[tuple[str, Peak], ...] = (
    ("H200 NVL", Peak(60e12, 418e12)),
    ("H200", Peak(67e12, 495e12)),
    ("H100 NVL", Peak(60e12, 418e12)),
    ("H100 PCIe", Peak(51e12, 378e12)),
    ("H100", Peak(67e12, 495e12)),
    ("A100", Peak(19.5e12, 156e12)),
)
"""By what a device's name contains, the first that fits. JAX's "bfloat16" is TF32 on these cards
too: it names the least precision on offer (see jax.lax.Precision)."""


def run(settings: CurvatureBenchmark) -> int:
    """Measures, prints, writes what is asked for and returns the process's exit code.

    Raises:
      ValueError, OSError, ModuleNotFoundError: it cannot start.
      WorkFailed: the measurement failed.
    """
    versions = _prepare(settings)
    baseline = None
    if settings.baseline is not None:
        alike = {n: v for n, v in settings.measured().items() if n != "repeats"}
        baseline = read_baseline(settings.baseline, "benchmark curvature", RATIOS, alike, device())
    workload = make_workload(settings)
    with at_work():
        report = {**measure_all(workload, settings), "versions": versions}
        console = Console(highlight=False)
        show(report, console)
        if settings.json is not None:
            write_json(settings.json, report)
        if settings.figures is not None:
            from experiments import benchmark_figures

            table = benchmark_figures.sweep(workload, settings)
            path = benchmark_figures.draw(table, settings.figures / "benchmark.png", device())
            console.print(f"sweep: {path} and {path.with_suffix('.csv').name}")
    if baseline is None:
        return 0
    otherwise = f"no ratio is more than {TOLERANCE:.0%} below {settings.baseline}"
    return conclude(regressions(report, baseline), otherwise, console)


def _prepare(settings: CurvatureBenchmark) -> dict[str, str]:
    """Checks what can be checked at once; the versions of what is measured."""
    versions = package_versions(("jax", "flax", "torch"))
    if settings.json is not None:
        require_json_path(settings.json)
    if settings.figures is not None:
        require_folder(settings.figures, "--figures")
    # JAX would take most of a GPU's memory and leave torch none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    use_every_core(settings.batch_size)
    return versions


def device() -> str:
    """What JAX computes on."""
    import jax

    return jax.devices()[0].device_kind if jax.default_backend() != "cpu" else processor()


def use_every_core(batch_size: int) -> None:
    """As many CPU devices as there are cores and the batch can be divided by.

    Within one program XLA leaves cores idle. Of no effect where JAX has its devices already.
    """
    import jax

    count = next(n for n in range(cores(), 0, -1) if batch_size % n == 0)
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def make_workload(settings: CurvatureBenchmark) -> Workload:
    """ResNet-18 for small images, the same random weights in both frameworks."""
    import jax
    import torch
    from flax import nnx

    import bridge
    from jaxcurv.losses import cross_entropy
    from jaxcurv.models import ResNet18
    from jaxcurv.problem import Problem, functional
    from jaxcurv.scoring import over_devices, place

    torch.set_num_threads(cores())
    network = random_resnet18(settings.classes, settings.width)
    model = nnx.eval_shape(
        lambda: ResNet18(settings.classes, stem="cifar", width=settings.width, rngs=nnx.Rngs(0))
    )
    model.eval()
    call, params = functional(bridge.from_torch(network.state_dict(), model), None)
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
    return Workload(problem, params, spread, twin, settings.image_size, settings.classes)


def make_contestants(workload: Workload, batch: Batch, probes: int) -> dict[str, Contestant]:
    """The published algorithm, the floor, and the estimators, by name."""
    found: dict[str, Contestant] = {}
    if workload.twin is not None:
        found[PUBLISHED] = Contestant(4 * probes, _published(workload, batch, probes))
    found[FLOOR] = Contestant(2 * (probes + 1), _floor(workload, batch, probes + 1))
    estimators: dict[str, Estimator] = {
        "FiniteDifference": FiniteDifference(STEP, probes),
        "HessianVector": HessianVector(probes),
        "HessianTrace": HessianTrace(probes),
        "GaussNewton": GaussNewton(),
        "LowRankGaussNewton": LowRankGaussNewton(),
    }
    for name, estimator in estimators.items():
        found[name] = _contestant(workload, batch, estimator)
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


_COARSE: tuple[Precision, ...] = ("tensorfloat32", "bfloat16")


def _contestant(workload: Workload, batch: Batch, estimator: Estimator) -> Contestant:
    return Contestant(
        int(forward_passes(estimator, workload.classes)),
        partial(_score, workload, batch, estimator),
    )


def _score(workload: Workload, batch: Batch, estimator: Estimator) -> np.ndarray:
    """A batch's scores `[batch]`, shared by the devices as `score_dataset` does it."""
    import jax

    from jaxcurv.curvature import reduce
    from jaxcurv.engine import collect, dispatch
    from jaxcurv.scoring import over_devices

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

    from experiments.published import published_curvature

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


def measure_all(workload: Workload, settings: CurvatureBenchmark) -> dict[str, Any]:
    """The report, as JSON has it: ratios (null where one side is missing), times, circumstances."""
    import jax
    import torch

    load = load_average()
    batch = workload.batch(settings.batch_size)
    contestants = make_contestants(workload, batch, settings.probes)
    on_accelerator = jax.default_backend() != "cpu"
    if on_accelerator:
        contestants |= make_coarse_contestants(workload, batch, settings.probes)
    times = measure(contestants, settings.repeats)
    pairs = {name: _ratio(times, *pair) for name, pair in RATIOS.items()}
    flops = forward_flops(workload, batch)
    figures = {}
    for name, contestant in contestants.items():
        figures[name] = {
            "milliseconds": summary(1000 * s for s in times[name]),
            "images_per_second": settings.batch_size / statistics.median(times[name]),
            "passes": contestant.passes,
            "fraction_of_peak": fraction_of_peak(
                device(),
                contestant.precision,
                flops * contestant.passes / statistics.median(times[name]),
            )
            if on_accelerator
            else None,
        }
    return {
        **{name: None if pair is None else pair["median"] for name, pair in pairs.items()},
        "ratios": pairs,
        "contestants": figures,
        "rank_agreement": rank_agreement(contestants),
        "forward_flops_a_batch": flops,
        "settings": settings.measured(),
        "device": device(),
        "backend": jax.default_backend(),
        "threads": {"cores": cores(), "torch": torch.get_num_threads()},
        "jax_devices": jax.local_device_count(),
        "load_before": load,
        "platform": platform.platform(),
    }


def _ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> dict[str, Any] | None:
    if over not in times:
        return None
    return summary(a / b for a, b in zip(times[over], times[under], strict=True))


def forward_flops(workload: Workload, batch: Batch) -> float:
    """Floating-point operations of one forward pass of a batch, counted before compilation.

    A compiled GPU program hides its convolutions in library calls, which are not counted.
    """
    import jax

    lowered = jax.jit(workload.problem.model).lower(workload.params, batch.images)
    counted: Any = lowered.cost_analysis()
    return float(counted["flops"])


def fraction_of_peak(name: str, precision: Precision, rate: float) -> float | None:
    """A rate in FLOP/s over the device's published peak; None for a device not in `PEAKS`."""
    for words, peak in PEAKS:
        if words in name:
            return rate / (peak.float32 if precision == "highest" else peak.tensorfloat32)
    return None


def rank_agreement(contestants: Mapping[str, Contestant]) -> dict[str, float]:
    """Spearman's rho of coarse scores with those in float32, by name of the coarse contestant."""
    import pandas as pd

    agreement = {}
    for name, coarse in contestants.items():
        if coarse.precision != "highest":
            fine = contestants[name.partition(",")[0]]
            scores: list[Any] = [fine.run(), coarse.run()]
            both = pd.DataFrame(dict(enumerate(scores)))
            agreement[name] = float(both.corr("spearman").iat[0, 1])
    return agreement


def show(report: Mapping[str, Any], console: Console) -> None:
    """Prints a report."""
    settings, threads = report["settings"], report["threads"]
    console.print(
        f"ResNet-18 of width {settings['width']}, {settings['classes']} classes, batch of "
        f"{settings['batch_size']} images of {settings['image_size']}x{settings['image_size']}, "
        f"n = {settings['probes']}, {settings['repeats']} repeats"
    )
    warn_of_load(report["load_before"], console)
    versions = ", ".join(f"{name} {report['versions'][name]}" for name in ("python", *_MEASURED))
    console.print(
        f"{report['device']} (JAX on {report['backend']}), {threads['cores']} cores, JAX with "
        f"{report['jax_devices']} devices, torch with {threads['torch']} threads; {versions}"
    )
    peaks = any(one["fraction_of_peak"] is not None for one in report["contestants"].values())
    ranks = report["rank_agreement"]
    headers = ["", "passes", "ms a batch", "range", "images/s"]
    headers += ["of peak"] * peaks + ["rho to fp32"] * bool(ranks)
    table = new_table(headers)
    for name, one in report["contestants"].items():
        ms, fraction = one["milliseconds"], one["fraction_of_peak"]
        cells = [name, str(one["passes"]), f"{ms['median']:,.1f}"]
        cells += [span(ms, 1), f"{one['images_per_second']:,.1f}"]
        cells += ["" if fraction is None else f"{fraction:.1%}"] * peaks
        cells += [f"{ranks[name]:.4f}" if name in ranks else ""] * bool(ranks)
        table.add_row(*cells)
    console.print(table)
    table = new_table(("ratio of times", "median", "range", "goal"))
    wanted = goals(settings, report["backend"])
    for name, ratio in report["ratios"].items():
        goal = f">= {wanted[name]:g}" if name in wanted else ""
        if ratio is None:
            table.add_row(name, "not measured", "", goal)
            continue
        table.add_row(name, f"{ratio['median']:.3f}", span(ratio, 3), goal)
    console.print(table)
    if report["over_published"] is None:
        console.print("over_published needs a build of torch that sees JAX's device")


_MEASURED = ("jax", "torch")


def goals(settings: Mapping[str, int], backend: str) -> dict[str, float]:
    """The ratios that the project sets itself, where it has set one for these settings."""
    wanted = {"of_floor": 0.9}
    if settings["classes"] == 10 and settings["probes"] == 10:
        wanted["gauss_newton_over_finite_difference"] = 1.8
    published = {16: 1.5, 64: 1.15} if backend == "cpu" else {16: 4.0, 64: 4.0}
    if settings["image_size"] == 32 and settings["width"] in published:
        wanted["over_published"] = published[settings["width"]]
    return wanted


def regressions(report: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """A line for each ratio that is clearly below an earlier report's, or is missing here."""
    lines = []
    for name in RATIOS:
        now, before = report[name], baseline[name]
        if before is not None and now is None:
            lines.append(f"{name} was {before:.3f} and could not be measured now")
        elif before is not None and now < (1 - TOLERANCE) * before:
            lines.append(
                f"{name} was {before:.3f} and is {now:.3f}, {1 - now / before:.0%} less "
                f"({TOLERANCE:.0%} is allowed)"
            )
    return lines
