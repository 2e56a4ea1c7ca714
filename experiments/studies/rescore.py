"""What the paper leaves open about the score, and what each choice does to Table I.

The test fold of a finished run is scored again under variants of its own Eq. 1, each of which
differs from it in one thing. For each: how it ranks the samples beside the run's own score, and the
failure rates of its first and last decile. `tabulate` and `draw` need the tables alone, not JAX.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.analysis.failures import deciles, failure_table
from bridge.chips.profiles import FULL_PROFILE
from bridge.report.figures.style import (
    BLACK,
    BLUE,
    GREY,
    STYLE,
    VERMILLION,
    new_figure,
    write_figure,
)
from bridge.report.folds import Fold
from bridge.report.tables import outcomes
from bridge.report.tables.formats import counted
from experiments.runs.files import read_parquet, write_csv, write_parquet
from experiments.runs.frameworks import has_chips
from experiments.runs.job import Job
from experiments.runs.networks import load_model
from experiments.runs.resume import key_of
from experiments.runs.samples import Samples, read_small
from experiments.settings.flags import Data, Experiment
from experiments.studies.opening import Study, open_images, read_scored
from experiments.system.devices import device, warn_of_idle_accelerator
from experiments.system.environment import package_versions
from jaxcurv.data import Normalisation, Normalised, subset
from jaxcurv.estimators import FiniteDifference
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import write_json

if TYPE_CHECKING:
    from flax import nnx

    from jaxcurv.engine.model import LogitsFn


SHIPPED = "shipped"
"""The run's own score, as its scores.parquet has it."""

RECOMPUTED = "recomputed"
"""The same once more: what the device and the versions alone change."""

RAW, TENSOR_FLOAT, ANOTHER_KEY = "raw inputs", "TensorFloat-32", "another key"

OWN_PREDICTION = "own prediction"
"""The model's prediction as the label: another score on digitally wrong samples only."""

FOLD: Fold = "test"

_SAMPLE = ("fold", "index", "path", "label", "prediction", "correct")


@dataclass(frozen=True)
class Rescore:
    """What each choice that the paper leaves open does to the curvature score and to Table I."""

    limit: int | None = None
    """Largest number of the run's scored test samples to use; `none` takes all."""
    probes: tuple[int, ...] = (1, 20)
    """Numbers of random vectors per sample to try, one at a time."""
    steps: tuple[float, ...] = (1e-4, 1e-2, 1e-1)
    """Steps of the finite difference to try, one at a time, in units of the normalised input."""
    batch_size: int = 64
    """Images per batch. Changes speed and memory only."""
    out: Path | None = None
    """Folder of the results; `none` is rescore/ in the run's folder."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                f"limit and batch_size must be at least 1; got {self.limit}, {self.batch_size}"
            )
        for name in ("probes", "steps"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must differ; got {values}")
        for count in self.probes:
            FiniteDifference(probes=count)
        for step in self.steps:
            FiniteDifference(step=step)


@dataclass(frozen=True)
class Variant:
    """One way to score."""

    name: str
    """Name of its column."""
    estimator: FiniteDifference
    """Eq. 1."""
    seed: int
    """Seed of the probes' key."""
    raw: bool = False
    """Differentiate with respect to pixels in [0, 1], not to normalised ones."""
    tensor_float: bool = False
    """Convolutions in TensorFloat-32."""


@dataclass(frozen=True)
class Finished:
    """A finished run to score again."""

    model: LogitsFn | nnx.Module
    """The network, in evaluation mode."""
    normalisation: Normalisation
    """The normalisation that it was trained with."""
    samples: Samples
    """Samples of the test fold, by index."""
    own: pd.DataFrame
    """The run's scores of these samples, in their order."""
    predictions: pd.DataFrame | None
    """The run's chips' predictions; None where it has no chips."""
    estimator: FiniteDifference
    """The run's own Eq. 1."""
    seed: int
    """Seed of the run's own probes."""
    origin: dict[str, Any]
    """What decides the scores besides the variant, as JSON holds it."""
    versions: dict[str, str]
    """Versions of the packages."""
    params: dict[str, Any] | None = None
    """The network's weights; None where it has them."""


def open_finished(
    experiment: Experiment,
    folder: Path,
    data_dir: Path | None,
    *,
    limit: int | None,
    batch_size: int,
) -> Finished:
    """Reads a run's trained network, scores and predictions, and the images.

    Data, seed and Eq. 1's settings are those that the run's scoring recorded, whatever the flags.

    Args:
      experiment: the run's; gives the number of bins.
      folder: the run's.
      data_dir: where data sets are; None for TFDS's default.
      limit: at most this many of the scored test samples; None for all.
      batch_size: images a batch.

    Raises:
      ValueError, OSError, ModuleNotFoundError: the work cannot start.
    """
    versions = package_versions(("jax", "flax", "matplotlib"))
    record, description = read_scored(folder)
    chips = has_chips(experiment, folder)
    if chips and not (folder / "predictions.parquet").exists():
        raise FileNotFoundError(f"no predictions.parquet in {folder}: run simulate first")
    recorded = record["settings"]
    experiment = replace(experiment, data=Data(**recorded["data"]))
    job = Job(experiment, folder, data_dir)
    images = open_images(job, description)
    fold = images.fold(FOLD)
    scores = read_parquet(folder / "scores.parquet")
    scores = scores[scores["fold"] == FOLD]
    chosen = subset(scores["index"].to_numpy(), limit, experiment.data.split_seed)
    if len(chosen) < experiment.analyse.bins:
        raise ValueError(
            f"{len(chosen)} samples cannot fill {experiment.analyse.bins} bins: score more"
        )
    own = scores.iloc[chosen].reset_index(drop=True)
    fold = fold.take(np.flatnonzero(np.isin(fold.indices, own["index"])))
    samples = read_small({FOLD: fold})[FOLD]
    if not np.array_equal(samples.labels, own["label"]):
        raise ValueError(
            f"mismatched labels: the scores in {folder} are of other images than "
            f"{images.dataset.name}'s"
        )
    predictions = read_parquet(folder / "predictions.parquet") if chips else None
    if predictions is not None and not (predictions["profile"] == FULL_PROFILE).any():
        raise ValueError(
            f"the run in {folder} has no chips under {FULL_PROFILE}, which rate variants: "
            "simulate them with --simulate.profiles"
        )
    warn_of_idle_accelerator()
    model, params = load_model(job, description, images.dataset)
    return Finished(
        model=model,
        normalisation=images.normalisation,
        samples=samples,
        own=own,
        predictions=predictions,
        estimator=FiniteDifference(**recorded["score"]["estimator"]),
        seed=recorded["seed"],
        origin={
            "data": recorded["data"],
            "model": {key: value for key, value in description.items() if key != "class_names"},
            "checkpoint_sha256": record["inputs"][description["checkpoint"]],
            "estimator": recorded["score"]["estimator"],
            "seed": recorded["seed"],
            "scored_on": record["device"],
            "indices_sha256": hashlib.sha256(samples.indices.tobytes()).hexdigest(),
            "samples": len(samples),
            "batch_size": batch_size,
            "device": device(),
        },
        versions=versions,
        params=params,
    )


def run(finished: Finished, experiment: Experiment, settings: Rescore, out: Path) -> None:
    """Scores under every variant, draws what each does and prints it.

    Leaves scores.parquet (a row a sample: fold, index, path where the run has it, label, prediction
    and correct of the digital model, and a column a variant), variants.csv (`tabulate`), drawn as
    rescore.png, .svg and .pdf with the same table beside them, and settings.json. The pieces/ of a
    run that was interrupted, or had fewer variants, are not computed again.
    """
    import jax
    from flax import nnx

    has_layers = isinstance(finished.model, nnx.Module)
    tensor_float = has_tensor_float(jax.devices()[0]) and has_layers
    variants = variants_of(finished.estimator, finished.seed, settings, tensor_float=tensor_float)
    pieces = out / "pieces" / key_of(finished.origin)
    scores = finished.own[[name for name in _SAMPLE if name in finished.own]].copy()
    scores[SHIPPED] = finished.own["curvature"]
    devices = {SHIPPED: finished.origin["scored_on"]}
    with progress(len(variants) * len(finished.samples), "rescore"):
        for variant in variants:
            path = pieces / f"{_slug(variant.name)}.parquet"
            with progress(len(finished.samples), variant.name):
                scores[variant.name], devices[variant.name] = score(finished, variant, path)
    scores[OWN_PREDICTION] = finished.own["curvature_label_free"]
    devices[OWN_PREDICTION] = devices[SHIPPED]
    scores.attrs["devices"] = devices
    write_parquet(out / "scores.parquet", scores, attrs=scores.attrs)
    interval: dict[str, Any] = {
        name: getattr(experiment.analyse, name) for name in ("bins", "confidence")
    }
    table = tabulate(scores, finished.predictions, **interval)
    write_csv(out / "variants.csv", table)
    draw(table, out / "rescore.png")
    write_json(
        out / "settings.json",
        {
            **finished.origin,
            "versions": finished.versions,
            "fold": FOLD,
            "profile": None if finished.predictions is None else FULL_PROFILE,
            "tensor_float_32": tensor_float,
            "variants": {variant.name: asdict(variant) for variant in variants},
            **interval,
        },
    )
    show(table)
    if finished.predictions is None:
        print("No failure rates: this network has no chips.")
    if not has_layers:
        print(
            f"{TENSOR_FLOAT} is left out: a network of your own is a function here, without layers "
            "whose precision could be set."
        )
    elif not tensor_float:
        print(
            f"No {TENSOR_FLOAT} on {finished.origin['device']}, so that variant is left out: it "
            "takes an NVIDIA GPU of compute capability 8.0 or more."
        )
    print(f"{out / 'rescore.png'}, variants.csv and scores.parquet")


def variants_of(
    own: FiniteDifference, seed: int, settings: Rescore, *, tensor_float: bool
) -> list[Variant]:
    """What is computed: the run's own score again, and what differs from it in one thing.

    Args:
      own: the run's Eq. 1; its own step and number of probes are no variants.
      seed: the run's.
      settings: which steps and numbers of probes.
      tensor_float: whether the device has TensorFloat-32.
    """
    same = Variant(RECOMPUTED, own, seed)
    variants = [same, replace(same, name=RAW, raw=True)]
    if tensor_float:
        variants.append(replace(same, name=TENSOR_FLOAT, tensor_float=True))
    variants.append(replace(same, name=ANOTHER_KEY, seed=seed + 1))
    for count in settings.probes:
        if count != own.probes:
            name = f"{count} probe" + ("s" if count > 1 else "")
            variants.append(replace(same, name=name, estimator=replace(own, probes=count)))
    for step in settings.steps:
        if step != own.step:
            name = f"h = {np.format_float_scientific(step, trim='-', exp_digits=1)}"
            variants.append(replace(same, name=name, estimator=replace(own, step=step)))
    return variants


def score(finished: Finished, variant: Variant, path: Path) -> tuple[np.ndarray, str]:
    """Scores the samples of a run under one variant, or reads what was finished.

    Args:
      finished: the run.
      variant: how.
      path: the Parquet file of the variant's own table.

    Returns:
      The scores `[samples]`, in nats per unit of the input, and the kind of device they are from.
    """
    import jax

    from jaxcurv.dataset import score_dataset

    network = with_tensor_float(finished.model) if variant.tensor_float else finished.model
    normalisation = finished.normalisation
    model: LogitsFn | nnx.Module = network
    params = finished.params
    if variant.raw:
        model, params = of_raw_pixels(network, normalisation, params)
        channels = len(normalisation.mean)
        normalisation = Normalisation((0.0,) * channels, (1.0,) * channels)
    table = score_dataset(
        model,
        Normalised(finished.samples, normalisation),
        params=params,
        key=jax.random.key(variant.seed),
        estimators={"curvature": variant.estimator},
        out=path,
        batch_size=finished.origin["batch_size"],
        description=variant.name,
    )
    return table["curvature"].to_numpy(), ", ".join(table.attrs["devices"])


def of_raw_pixels(
    model: LogitsFn | nnx.Module, normalisation: Normalisation, params: Any = None
) -> tuple[LogitsFn, Any]:
    """The model as a function of pixels x in [0, 1]: f((x - mean) / std).

    With s the standard deviation, L'(x) = L((x - mean) / s) has the gradient of L divided by s, and
    a step h of x is one of h / s of the normalised input: channel by channel.

    Args:
      model: a model of normalised images.
      normalisation: the normalisation that it expects.
      params: its weights; None where it has them.

    Returns:
      `logits_fn(params, images)` and params.
    """
    import jax.numpy as jnp

    from jaxcurv.engine.model import functional

    of_normalised, weights = functional(model, params)

    def logits_fn(params: Any, images: Any) -> Any:
        mean = jnp.asarray(normalisation.mean, images.dtype)
        std = jnp.asarray(normalisation.std, images.dtype)
        return of_normalised(params, (images - mean) / std)

    return logits_fn, weights


def with_tensor_float(model: LogitsFn | nnx.Module) -> nnx.Module:
    """A copy whose convolutions compute in TensorFloat-32, where the device has it.

    As PyTorch has it by default: its convolutions, and not its linear layers. The precision is the
    layers' own, a property of the model; the engine's is untouched, and what it refuses it refuses.
    """
    from flax import nnx

    assert isinstance(model, nnx.Module)
    copy = nnx.clone(model)
    for _, module in nnx.iter_graph(copy):
        if isinstance(module, nnx.Conv):
            module.precision = "tensorfloat32"
    return copy


def has_tensor_float(device: Any) -> bool:
    """Whether a JAX device has TensorFloat-32: NVIDIA's GPUs of compute capability 8.0 and more."""
    capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    return capability is not None and int(capability[1]) >= 8


def tabulate(
    scores: pd.DataFrame,
    predictions: pd.DataFrame | None,
    *,
    bins: int = 10,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """What each variant does to the ranks and, with chips, to Table I under adc+wnoise+pcm.

    Args:
      scores: one row a sample: fold, index, label, prediction, correct (digital), `shipped` and a
        column a variant; as scores.parquet has it.
      predictions: the run's, as predictions.parquet has it; rows of other samples and profiles are
        left out. None where there are no chips.
      bins: cut among all samples.
      confidence: confidence level of the intervals.

    Returns:
      One row a variant, `shipped` first: variant, samples, digitally_correct, chips, device, rho
      and rho_of_correct (Spearman's, with the shipped score; NaN below 3 samples), d1_overlap and
      d10_overlap (the share of the shipped first and last bin that is in the variant's own), and
      where there are chips in percent d1_of_all, d10_of_all, d1_of_correct and d10_of_correct,
      each with _low and _high: the rate's own interval, not that of a difference, for which
      variants share too many samples.

    Raises:
      ValueError: no `shipped`, no predictions under the profile, or what `outcomes.join` refuses.
    """
    if SHIPPED not in scores:
        raise ValueError(f"no column {SHIPPED} among the scores: {', '.join(scores)}")
    if predictions is None:
        samples, analog_correct = outcomes.digital_outcomes(scores), np.empty((0, len(scores)))
    else:
        samples, analog_correct = _on_chips(scores, predictions)
    digital = samples["digital_correct"]
    devices = scores.attrs.get("devices", {})
    variants = [name for name in scores if name not in _SAMPLE]
    bin_of = {name: deciles(samples[name], samples["sample"], bins) for name in variants}
    rows = []
    for name in [SHIPPED, *(name for name in variants if name != SHIPPED)]:
        row = {
            "variant": name,
            "samples": len(samples),
            "digitally_correct": int(digital.sum()),
            "chips": len(analog_correct),
            "device": devices.get(name, ""),
            "rho": _spearman(samples, name),
            "rho_of_correct": _spearman(samples[digital], name),
        }
        ends = (("d1", 1), ("d10", bins))
        for end, number in ends:
            theirs = bin_of[SHIPPED] == number
            row[f"{end}_overlap"] = float((bin_of[name] == number)[theirs].mean())
        rows.append(row)
        if predictions is None:
            continue
        cut = failure_table(
            samples[name],
            digital,
            analog_correct,
            bins,
            indices=samples["sample"],
            confidence=confidence,
        )
        for denominator in outcomes.DENOMINATORS:
            for end, number in ends:
                for suffix in ("", "_low", "_high"):
                    rate = cut[f"rate_of_{denominator}{suffix}"].iloc[number - 1]
                    row[f"{end}_of_{denominator}{suffix}"] = 100 * rate
    return pd.DataFrame(rows)


def _on_chips(scores: pd.DataFrame, predictions: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The samples, and whether each chip gets them right, bool `[chips, samples]`."""
    wanted = (
        predictions["fold"].isin(scores["fold"])
        & predictions["index"].isin(scores["index"])
        & (predictions["profile"] == FULL_PROFILE)
    )
    if not wanted.any():
        raise ValueError(f"no predictions of these samples under {FULL_PROFILE}")
    return outcomes.over_chips(outcomes.join(scores, predictions[wanted]))


def _spearman(samples: pd.DataFrame, name: str) -> float:
    return float(samples[name].corr(samples[SHIPPED], method="spearman", min_periods=3))


def draw(table: pd.DataFrame, path: Path) -> Path:
    """Agreement with the shipped score and, with chips, D1 and D10: a row a variant.

    Args:
      table: as `tabulate` returns it.
      path: the PNG file; SVG, PDF and CSV are put beside it.
    """
    rows = np.arange(len(table))
    first = table.iloc[0]
    rated = tuple(outcomes.DENOMINATORS) if first["chips"] else ()
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=7.6 if rated else 4.6, height=0.26 * len(table) + 1.5)
        agreement, *others = figure.subplots(1, 1 + len(rated), sharey=True, squeeze=False)[0]
        for column, label, colour, marker, offset in (
            ("rho", "rho, all", BLACK, "<", -0.18),
            ("rho_of_correct", "rho, correct", BLACK, ">", -0.06),
            ("d1_overlap", "D1 in common", BLUE, "o", 0.06),
            ("d10_overlap", "D10 in common", VERMILLION, "s", 0.18),
        ):
            agreement.plot(
                table[column],
                rows + offset,
                linestyle="none",
                color=colour,
                marker=marker,
                markeredgewidth=0,
                label=label,
                clip_on=False,
            )
        lowest = np.nanmin(table[["rho", "rho_of_correct", "d1_overlap", "d10_overlap"]])
        agreement.set_xlim(np.floor(10 * min(float(lowest), 0.9)) / 10, 1)
        agreement.set_xlabel("Spearman's rho; share in common")
        agreement.set_title("Agreement with the shipped score")
        for axis, denominator in zip(others, rated, strict=True):
            _draw_rates(axis, table, rows, denominator)
        agreement.set_yticks(rows, table["variant"])
        agreement.set_ylim(len(table) - 0.5, -0.5)
        for axis in (agreement, *others[:1]):
            handles, labels = axis.get_legend_handles_labels()
            figure.legend(
                handles,
                labels,
                loc="outside lower left" if axis is agreement else "outside lower right",
                ncols=4 if rated else 2,
            )
        on_chips = f", {counted(first['chips'], 'chip')}, {FULL_PROFILE}" if rated else ""
        figure.suptitle(f"{first['samples']:,} {FOLD} samples{on_chips}", fontsize=9)
        return write_figure(figure, path, table)


def _draw_rates(axis: Axes, table: pd.DataFrame, rows: np.ndarray, denominator: str) -> None:
    for end, colour, marker, offset in (("d1", BLUE, "o", -0.1), ("d10", VERMILLION, "s", 0.1)):
        rate, low, high = (
            table[f"{end}_of_{denominator}{suffix}"].to_numpy() for suffix in ("", "_low", "_high")
        )
        axis.axvline(rate[0], color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        axis.errorbar(
            rate,
            rows + offset,
            xerr=[rate - low, high - rate],
            fmt=marker,
            color=colour,
            markeredgewidth=0,
            elinewidth=0.8,
            label=end.upper(),
        )
    axis.set_xlim(left=0)
    axis.set_xlabel(f"Failure rate\n(% of {outcomes.DENOMINATORS[denominator]})")


def show(table: pd.DataFrame) -> None:
    """Prints a row a variant."""
    first = table.iloc[0]
    rates = (
        f"; D1, D10: analog-only failures, %, {FULL_PROFILE}, mean over "
        f"{counted(first['chips'], 'chip')}"
        if first["chips"]
        else ""
    )
    printed = Table(
        title=f"The score's variants on {first['samples']:,} {FOLD} samples, "
        f"{first['digitally_correct']:,} of them digitally correct",
        caption="rho: Spearman's, with the run's own score; kept: share of its bin that is in the "
        f"variant's own{rates}; c: of the digitally correct",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    columns: Mapping[str, tuple[str, int]] = {
        "rho": ("rho", 4),
        "rho_of_correct": ("rho c", 4),
        "d1_overlap": ("D1 kept", 3),
        "d10_overlap": ("D10 kept", 3),
        "d1_of_all": ("D1", 1),
        "d10_of_all": ("D10", 1),
        "d1_of_correct": ("D1 c", 1),
        "d10_of_correct": ("D10 c", 1),
    }
    columns = {name: one for name, one in columns.items() if name in table}
    printed.add_column("", no_wrap=True)
    for label, _ in columns.values():
        printed.add_column(label, justify="right", no_wrap=True)
    for row in table.to_dict("records"):
        cells = (f"{row[name]:.{places}f}" for name, (_, places) in columns.items())
        printed.add_row(row["variant"], *cells)
    Console(highlight=False).print(printed)


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9.-]+", "_", name.lower())


STUDY = Study(
    "rescore",
    Rescore,
    open_finished,
    run,
    opened_with=("limit", "batch_size"),
    of=("train", "score", "simulate"),
)
