"""What curvature costs, drawn: against n, batch size and data-set size, and its peak memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bridge.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    STYLE,
    VERMILLION,
    new_figure,
    write_figure,
)
from experiments.benchmarks.common import apart, resident
from experiments.benchmarks.curvature_contestants import (
    PUBLISHED,
    STEP,
    Contestant,
    CurvatureBenchmark,
    Workload,
    make_contestants,
    make_workload,
    measure,
)
from jaxcurv.data import Arrays, Normalisation, Normalised
from jaxcurv.estimators import Estimator, FiniteDifference, GaussNewton, nominal_passes
from jaxcurv.progress import progress

if TYPE_CHECKING:
    from jaxcurv.data.reading import Batch


@dataclass(frozen=True)
class Points:
    """Where the cost is measured."""

    probes: tuple[int, ...] = (1, 2, 5, 10, 20)
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    samples: tuple[int, ...] = (64, 128, 256, 512, 1024)


_LINES = {
    PUBLISHED: (GREY, "s", "--"),
    "FiniteDifference": (BLUE, "o", "-"),
    "HessianVector": (VERMILLION, "^", "-"),
    "GaussNewton": (GREEN, "D", "-"),
}
_PANELS = {
    "probes": ("Probes n", "Time an image (ms)"),
    "batch_size": ("Batch size", "Time an image (ms)"),
    "samples": ("Samples of the data set", "Time of score_dataset (s)"),
    "memory": ("Batch size", "Peak memory, with compilation (MB)"),
}


def sweep(
    workload: Workload, settings: CurvatureBenchmark, points: Points | None = None
) -> pd.DataFrame:
    """Measures.

    Returns:
      A row a point: panel ("probes", "batch_size", "samples" or "memory"), x, contestant, and
      median, lowest and highest of the repeats in the panel's unit (`_PANELS`). Memory is measured
      once, in a process of its own: what it took at most beyond the loaded libraries and model,
      compilation included; on an accelerator, the device's memory.
    """
    points = points or Points()
    names = [name for name in _LINES if name != PUBLISHED or workload.twin is not None]

    def time(batch: Batch, probes: int) -> dict[str, list[float]]:
        contestants = make_contestants(workload, batch, probes)
        return measure({name: contestants[name] for name in names}, settings.repeats)

    rows = []
    batch = workload.batch(settings.batch_size)
    for probes in points.probes:
        times = time(batch, probes)
        rows += _rows("probes", probes, times, 1000 / settings.batch_size)
    for size in points.batch_sizes:
        times = time(workload.batch(size), settings.probes)
        rows += _rows("batch_size", size, times, 1000 / size)
    runs = len(_scored(settings)) * (1 + settings.repeats)
    with progress(runs * sum(points.samples), "score_dataset"):
        for samples in points.samples:
            rows += _rows("samples", samples, _score_datasets(workload, settings, samples), 1)
    for size in points.batch_sizes:
        for name in names:
            rows += _rows("memory", size, {name: [apart(peak_memory, settings, name, size)]}, 1e-6)
    return pd.DataFrame(rows)


def _rows(
    panel: str, x: int, values: Mapping[str, Sequence[float]], scale: float
) -> list[dict[str, Any]]:
    return [
        {
            "panel": panel,
            "x": x,
            "contestant": name,
            "median": scale * float(np.median(found)),
            "lowest": scale * min(found),
            "highest": scale * max(found),
        }
        for name, found in values.items()
    ]


def _scored(settings: CurvatureBenchmark) -> tuple[Estimator, ...]:
    """What `score_dataset` is timed with."""
    return FiniteDifference(STEP, settings.probes), GaussNewton()


def _score_datasets(
    workload: Workload, settings: CurvatureBenchmark, samples: int
) -> dict[str, list[float]]:
    """Seconds of `score_dataset`, checks and reading included."""
    import jax

    from jaxcurv import score_dataset

    def score(estimator: Estimator) -> object:
        return score_dataset(
            workload.problem.model,
            source,
            key=jax.random.key(0),
            params=workload.params,
            estimators={"score": estimator},
            batch_size=settings.batch_size,
            description=f"{samples} samples",
        )

    random = np.random.default_rng(0)
    shape = (samples, settings.image_size, settings.image_size, 3)
    images = random.integers(0, 256, shape, np.uint8)
    labels = random.integers(0, workload.classes, samples, np.int32)
    arrays = Arrays(images, labels, np.arange(samples))
    source = Normalised(arrays, Normalisation((0.5,) * 3, (0.25,) * 3))
    return measure(
        {
            type(estimator).__name__: Contestant(
                int(nominal_passes(estimator, workload.classes)), partial(score, estimator)
            )
            for estimator in _scored(settings)
        },
        settings.repeats,
    )


def peak_memory(settings: CurvatureBenchmark, name: str, batch_size: int) -> float:
    """Peak memory of one batch in bytes, see `sweep`; NaN where the system does not tell.

    Call it once in a process.
    """
    import jax

    workload = make_workload(settings)
    contestants = make_contestants(workload, workload.batch(batch_size), settings.probes)
    if jax.default_backend() == "cpu":
        before, _ = resident()
        contestants[name].run()
        return resident()[1] - before
    contestants[name].run()
    if name == PUBLISHED:
        import torch

        return float(torch.cuda.max_memory_allocated())
    statistics = jax.devices()[0].memory_stats() or {}
    return float(statistics.get("peak_bytes_in_use", math.nan))


def draw(table: pd.DataFrame, path: Path, device: str) -> Path:
    """Draws a sweep, one panel each, with its CSV beside it; the bar is the range of the repeats.

    Args:
      table: as `sweep` returns it.
      path: the PNG file.
      device: for the title.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=7.2, height=5.4)
        for axis, (panel, (x_label, y_label)) in zip(
            figure.subplots(2, 2).flat, _PANELS.items(), strict=True
        ):
            rows = table[(table["panel"] == panel) & table["median"].notna()]
            for name, line in rows.groupby("contestant", sort=False):
                colour, marker, dashes = _LINES[str(name)]
                spread = line["median"] - line["lowest"], line["highest"] - line["median"]
                axis.errorbar(
                    line["x"],
                    line["median"],
                    yerr=np.stack(spread),
                    fmt=dashes,
                    marker=marker,
                    color=colour,
                    label=str(name),
                    elinewidth=0.8,
                )
            if panel != "probes":
                axis.set_xscale("log")
            axis.xaxis.set_major_locator(FixedLocator(sorted(rows["x"].unique())))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            if panel == "samples":
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
                axis.yaxis.set_minor_formatter(NullFormatter())
            else:
                axis.set_ylim(bottom=0)
            axis.set_xlabel(x_label)
            axis.set_ylabel(y_label)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.suptitle(device, fontsize=9)
        return write_figure(figure, path, table)
