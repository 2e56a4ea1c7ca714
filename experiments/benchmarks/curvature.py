"""How fast curvature is: the estimators against each other, the published algorithm and a floor.

See `experiments.benchmarks.common` for the method.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments.benchmarks.common import (
    conclude,
    load_average,
    new_table,
    read_baseline,
    require_folder,
    require_json_path,
    span,
    summary,
    warn_of_load,
)
from experiments.benchmarks.curvature_contestants import (
    RATIOS,
    TOLERANCE,
    Contestant,
    CurvatureBenchmark,
    Workload,
    make_coarse_contestants,
    make_contestants,
    make_workload,
    measure,
)
from experiments.system.devices import cores, device, use_every_core
from experiments.system.environment import package_versions
from experiments.system.errors import at_work
from jaxcurv.estimators import Precision
from jaxcurv.storage.checksums import write_json

if TYPE_CHECKING:
    from jaxcurv.data.reading import Batch

_MEASURED = ("jax", "torch")


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
"""Peak rates by a part of the device's name; the first that fits counts. JAX's "bfloat16" is TF32
on these cards too: it names the least precision on offer (see jax.lax.Precision)."""


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
            from experiments.benchmarks.curvature_figures import draw, sweep

            table = sweep(workload, settings)
            path = draw(table, settings.figures / "benchmark.png", device())
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
    network = settings.get("model")
    if network is None:
        network = f"ResNet-18 of width {settings['width']}, {settings['classes']} classes"
    console.print(
        f"{network}, batch of "
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
    headers = ["", "nominal passes", "ms a batch", "range", "images/s"]
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


def goals(settings: Mapping[str, Any], backend: str) -> dict[str, float]:
    """The ratios that the project sets itself, where it has set one for these settings."""
    wanted = {"of_floor": 0.9}
    if "model" in settings:
        return wanted
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
