"""How the estimators of curvature rank the same samples: one trained model, one pass over them.

For every pair Spearman's rho, among all samples and among the digitally correct ones, with the cost
of each. Estimators that evaluate the same probes agree for that reason too: `_NOTES` says where,
and a second key gives the honest comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.report.figures.style import STYLE, new_figure, write_figure
from experiments.runs.descriptions import read_description
from experiments.runs.job import Job
from experiments.runs.networks import load_model
from experiments.settings.flags import Experiment
from experiments.studies.opening import Study, open_images
from experiments.system.devices import device, warn_of_idle_accelerator
from experiments.system.environment import package_versions
from jaxcurv.costs import GRADIENT_NORM, forward_passes
from jaxcurv.data import Normalised
from jaxcurv.estimators import (
    Adaptive,
    Estimator,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    describe,
    named_estimators,
)
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import write_json

if TYPE_CHECKING:
    from flax import nnx

    from jaxcurv.engine.model import LogitsFn

REFERENCE = "fd_h1e-3_n10"
"""Eq. 1 at the usual step and number of probes."""

_NAMED = named_estimators()

ESTIMATORS: dict[str, Estimator] = {
    REFERENCE: _NAMED["finite_difference"],
    "fd_h1e-4_n10": FiniteDifference(1e-4, 10),
    "fd_h1e-2_n10": FiniteDifference(1e-2, 10),
    "fd_h1e-1_n10": FiniteDifference(1e-1, 10),
    "fd_h1e-3_n1": FiniteDifference(1e-3, 1),
    "fd_h1e-3_n2": FiniteDifference(1e-3, 2),
    "fd_h1e-3_n5": FiniteDifference(1e-3, 5),
    "fd_h1e-3_n20": FiniteDifference(1e-3, 20),
    "fd_h1e-3_adaptive": Adaptive(FiniteDifference(1e-3, 10), tolerance=0.1),
    "hessian_vector": _NAMED["hessian_vector"],
    "hessian_trace": _NAMED["hessian_trace"],
    "hessian_trace_h1e-3": HessianTrace(step=1e-3),
    "gauss_newton": _NAMED["gauss_newton"],
    "low_rank_gauss_newton": _NAMED["low_rank_gauss_newton"],
}

ANOTHER_KEY: dict[str, Estimator] = {
    "fd_h1e-3_n10_another_key": FiniteDifference(1e-3, 10),
    "fd_h1e-3_n1_another_key": FiniteDifference(1e-3, 1),
}

COARSE: dict[str, Estimator] = {
    "hessian_vector_tensorfloat32": HessianVector(precision="tensorfloat32"),
    "hessian_vector_bfloat16": HessianVector(precision="bfloat16"),
    "gauss_newton_tensorfloat32": GaussNewton("tensorfloat32"),
    "gauss_newton_bfloat16": GaussNewton("bfloat16"),
}
"""On an accelerator only: a CPU computes them in float32."""

BY_PRODUCTS = {"gradient_norm": GRADIENT_NORM, "loss": 1.0}
"""Columns that every scoring has, with their cost in F."""

_NOTES = (
    f"{REFERENCE} shares its key's first probes with the other n of that step, with the adaptive "
    "one and with the trace at that step; all steps use the same random vectors. The rows of "
    "another_key share nothing with it."
)


@dataclass(frozen=True)
class RankCorrelation:
    """How the curvature estimators rank the same images, by Spearman's rank correlation."""

    limit: int = 1000
    """Largest number of images of the test fold to use, at least 3."""
    batch_size: int = 64
    """Images per batch. Changes speed and memory only."""
    out: Path | None = None
    """Folder of the results; `none` is rank-correlation/ in the run's folder."""

    def __post_init__(self) -> None:
        if self.limit < 3 or self.batch_size < 1:
            raise ValueError(
                "limit must be at least 3, to rank anything, and batch_size at least 1; got "
                f"{self.limit}, {self.batch_size}"
            )


@dataclass(frozen=True)
class Trained:
    """A run's trained model and the images to score."""

    model: LogitsFn | nnx.Module
    """The network, in evaluation mode."""
    params: dict[str, Any] | None
    """Its weights; None where it has them."""
    source: Normalised
    """Samples of the test fold."""
    description: dict[str, Any]
    """What `model.json` says of the model."""
    data: str
    """The data set's name."""
    versions: dict[str, str]


def open_trained(
    experiment: Experiment, folder: Path, data_dir: Path | None, *, limit: int
) -> Trained:
    """Reads a run's trained model and at most `limit` images of the test fold.

    Args:
      experiment: the run's.
      folder: the run's.
      data_dir: where data sets are; None for TFDS's default.
      limit: at most this many samples.

    Raises:
      ValueError, OSError, ModuleNotFoundError: the work cannot start.
    """
    versions = package_versions(("jax", "flax", "matplotlib"))
    if not (folder / "model.json").exists():
        raise FileNotFoundError(f"no trained model in {folder}: run train first")
    job = Job(experiment, folder, data_dir)
    description = read_description(folder)
    images = open_images(job, description)
    return Trained(
        *load_model(job, description, images.dataset),
        images.some("test", limit),
        description,
        images.dataset.name,
        versions,
    )


def run(trained: Trained, experiment: Experiment, settings: RankCorrelation, out: Path) -> None:
    """Compares the estimators on the trained model of a run and prints the table.

    Leaves scores.parquet and scores_another_key.parquet, rank_correlation and
    rank_correlation_correct (the matrix of rho as CSV, drawn as PNG and SVG) and settings.json.
    Goes on where it was interrupted.
    """
    import jax

    from jaxcurv.dataset import score_dataset

    warn_of_idle_accelerator()
    description = trained.description
    estimators = ESTIMATORS if jax.default_backend() == "cpu" else ESTIMATORS | COARSE
    seeds = {"first": experiment.seed, "another": experiment.seed + 1}

    def score(which: str, estimators: Mapping[str, Estimator], name: str) -> pd.DataFrame:
        return score_dataset(
            trained.model,
            trained.source,
            params=trained.params,
            key=jax.random.key(seeds[which]),
            estimators=estimators,
            out=out / name,
            batch_size=settings.batch_size,
            description=f"score, {which} key",
        )

    with progress(2 * len(trained.source), "rank-correlation"):
        with progress(len(trained.source), "first key"):
            scores = score("first", estimators, "scores.parquet")
        with progress(len(trained.source), "another key"):
            second = score("another", ANOTHER_KEY, "scores_another_key.parquet")
    scores = scores.merge(second[["index", *ANOTHER_KEY]], on="index", validate="one_to_one")

    estimators = estimators | ANOTHER_KEY
    costs = costs_of(estimators, scores, description["num_classes"])
    groups = {
        "rank_correlation": scores,
        "rank_correlation_correct": scores[scores["correct"]],
    }
    matrices = {name: rank_correlations(rows, list(costs)) for name, rows in groups.items()}
    for name, matrix in matrices.items():
        which = "digitally correct test samples" if name.endswith("correct") else "test samples"
        title = f"Spearman's rho, {len(groups[name]):,} {which} of {trained.data}"
        draw(matrix, out / f"{name}.png", title)
    write_json(
        out / "settings.json",
        {
            "data": experiment.data.deciding,
            "model": {key: value for key, value in description.items() if key != "class_names"},
            "limit": settings.limit,
            "batch_size": settings.batch_size,
            "samples": len(scores),
            "correct": int(scores["correct"].sum()),
            "seeds": seeds,
            "estimators": {name: describe(one) for name, one in estimators.items()},
            "cost_in_forward_passes": costs,
            "notes": _NOTES,
            "device": device(),
            "versions": trained.versions,
        },
    )
    show(matrices["rank_correlation"], matrices["rank_correlation_correct"], costs, scores)
    print(
        f"{out / 'rank_correlation.png'}, rank_correlation_correct.png, their CSVs and "
        "scores.parquet"
    )


def costs_of(
    estimators: Mapping[str, Estimator], scores: pd.DataFrame, classes: int
) -> dict[str, float]:
    """Cost a sample in times of a forward pass (`jaxcurv.costs`) by column, of each alone; an
    adaptive one's is its mean."""
    costs = {}
    for name, estimator in estimators.items():
        taken = float(scores[f"{name}_probes"].mean()) if isinstance(estimator, Adaptive) else None
        costs[name] = float(forward_passes(estimator, classes, taken))
    return costs | BY_PRODUCTS


def rank_correlations(scores: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Spearman's rho of every pair of columns; NaN where fewer than 3 samples are left."""
    return scores[columns].corr("spearman", min_periods=3)


def draw(matrix: pd.DataFrame, path: Path, title: str) -> Path:
    """An annotated heat map of rho, with its CSV beside it."""
    size = len(matrix)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = new_figure(width=0.42 * size + 2.4, height=0.36 * size + 2.2)
        axis = figure.subplots()
        image = axis.imshow(matrix, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(matrix.shape):
            value = matrix.iat[row, column]
            axis.text(
                column,
                row,
                f"{value:.3f}",
                ha="center",
                va="center",
                fontsize=6,
                color="black" if value > 0.6 else "white",
            )
        axis.set_xticks(
            range(size), matrix.columns, rotation=45, ha="right", rotation_mode="anchor"
        )
        axis.set_yticks(range(size), matrix.index)
        axis.tick_params(length=0)
        axis.set_title(title)
        figure.colorbar(image, ax=axis, label="Spearman's rho (colour: 0 where below)", shrink=0.6)
        return write_figure(figure, path, matrix.rename_axis("score").reset_index())


def show(
    among_all: pd.DataFrame,
    among_correct: pd.DataFrame,
    costs: Mapping[str, float],
    scores: pd.DataFrame,
) -> None:
    """Prints rho with the reference and the cost of each."""
    correct = int(scores["correct"].sum())
    table = Table(
        title=f"Spearman's rho with {REFERENCE}",
        caption=_NOTES,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("", "cost (F)", f"all {len(scores):,}", f"{correct:,} correct"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, cost in costs.items():
        rho = (f"{matrix.at[REFERENCE, name]:.4f}" for matrix in (among_all, among_correct))
        table.add_row(name, f"{cost:,.1f}".removesuffix(".0"), *rho)
    Console(highlight=False).print(table)


STUDY = Study(
    "rank_correlation",
    RankCorrelation,
    open_trained,
    run,
    opened_with=("limit",),
    of=("train",),
)
