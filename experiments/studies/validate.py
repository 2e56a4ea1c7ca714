"""A run's scores beside figures that others published of the same training images.

Spearman's rho of every score with every reference, for the run's one checkpoint and averaged over
the epochs that training kept, as the literature does (I. Garg, D. Ravikumar, K. Roy, "Memorization
Through the Lens of Curvature of Loss Function Around Samples", ICML 2024). Intervals are for other
images of this one training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.report.folds import POOLED, Fold
from bridge.report.tables.outcomes import folds
from bridge.report.tables.predictors import LABEL_FREE, score_columns
from experiments.runs.descriptions import is_of_factory, read_normalisation
from experiments.runs.files import read_parquet, write_parquet
from experiments.runs.job import Job
from experiments.runs.networks import identity_of_model, load_flax, load_model
from experiments.runs.resume import key_of
from experiments.runs.samples import Samples, choose_folds, read_small
from experiments.settings.flags import Experiment
from experiments.studies.opening import Images, Study, open_images, read_scored
from experiments.studies.published import Reference, read_references
from experiments.studies.published_ranks import AVERAGED, SAMPLE, draw, show, tabulate, verdicts
from experiments.system.devices import device, use_every_core, warn_of_idle_accelerator
from experiments.system.environment import package_versions
from jaxcurv.data import Chosen, Normalisation, Normalised, subset
from jaxcurv.estimators import Estimator, FiniteDifference, describe
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import write_json

_SMALLEST = 10
"""Images below which nothing is compared."""


@dataclass(frozen=True)
class Validate:
    """How a run's scores rank its training images beside figures that others published of them."""

    cscores: str | None = None
    """File of published consistency scores: an .npz with scores and labels of every training image
    in the official order. With `none` they are left out."""
    ranking: str | None = None
    """File of a published ranking: an .npy with the official index of every training image, from
    the lowest curvature to the highest. With `none` it is left out."""
    average: bool = True
    """Also average curvature, gradient norm and loss over the epochs that training kept
    (--train.keep-every)."""
    probes: int = 1
    """Random vectors per sample at each of these epochs, drawn anew at each."""
    samples: Literal["scored", "all"] = "scored"
    """Training images to use: `scored`, those that the run has scored, or `all`, of which the
    others are scored first."""
    limit: int | None = None
    """Largest number of images of each fold to use; `none` takes all."""
    batch_size: int = 64
    """Images per batch on each device. Changes speed and memory, and scores by rounding only; with
    another size what was computed with this one is computed again."""
    out: Path | None = None
    """Folder of the results; `none` is validate/ in the run's folder."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.limit is not None and self.limit < _SMALLEST):
            raise ValueError(
                f"limit must be at least {_SMALLEST}, to rank anything, and batch_size at least 1; "
                f"got {self.limit}, {self.batch_size}"
            )
        FiniteDifference(probes=self.probes)


@dataclass(frozen=True)
class Opened:
    """What there is to compare, and what has to be scored first."""

    references: tuple[Reference, ...]
    own: pd.DataFrame
    """The run's own scores of the images that are used, as far as it has them."""
    images: pd.DataFrame
    """The images that are used: fold, index and label, by fold and index."""
    source: Samples | None
    """These images in the order of their indices; None where nothing has to be scored."""
    normalisation: Normalisation
    """That of the network."""
    job: Job
    description: dict[str, Any]
    """The network's."""
    network: Any
    """The network and its parameters, as `load_model` gives them; None where it scores nothing."""
    epochs: tuple[int, ...]
    """The epochs to average over."""
    remark: str
    """Why there is no average, or which epochs it lacks; "" where nothing is to be said."""
    batch_size: int
    """Images of a batch, on all devices together."""
    versions: dict[str, str]


def open_run(
    experiment: Experiment,
    folder: Path,
    data_dir: Path | None,
    *,
    cscores: str | None,
    ranking: str | None,
    average: bool,
    samples: Literal["scored", "all"],
    limit: int | None,
    batch_size: int,
) -> Opened:
    """Reads the references, a run's scores and, where more has to be scored, network and images.

    Args:
      experiment: the run's.
      folder: the run's.
      data_dir: where data sets are; None for TFDS's default.
      cscores, ranking, average, samples, limit, batch_size: as `Validate` has them.

    Raises:
      ValueError, OSError, ModuleNotFoundError: the work cannot start.
    """
    versions = package_versions(("jax", "flax", "matplotlib"))
    references = read_references(cscores, ranking)
    _, description = read_scored(folder)
    use_every_core()
    job = Job(experiment, folder, data_dir)
    epochs, remark = _epochs(job, description) if average else ((), "")
    scores = read_parquet(folder / "scores.parquet")
    # A network of the user's own has no validation fold, or one that is a split of its own.
    wanted: list[Fold] = ["train"] if is_of_factory(description) else ["train", "validation"]
    own = scores[scores["fold"].isin(wanted)]
    if samples == "scored" and own.empty:
        raise ValueError(
            f"the run in {folder} has scored no training image: give --validate.samples all, or "
            "run score with train among its --folds"
        )
    opened, chosen = None, None
    used = own[[*SAMPLE]]
    if samples == "all" or epochs:
        opened = open_images(job, description)
        chosen = choose_folds(opened.dataset, experiment, wanted)
        if samples == "all":
            used = pd.concat(
                pd.DataFrame({"fold": fold, "index": one.indices, "label": one.labels})
                for fold, one in chosen.items()
            )
    seed = experiment.data.split_seed
    parts = []
    for fold, rows in folds(used):
        if len(rows) < _SMALLEST:
            raise ValueError(
                f"{len(rows)} images of the {fold} fold are too few to rank: score at least "
                f"{_SMALLEST}, or give --validate.samples all"
            )
        if fold != POOLED:
            parts.append(rows.iloc[subset(rows["index"].to_numpy(), limit, seed)])
    used = pd.concat(parts, ignore_index=True)
    for reference in references:
        reference.at(used["index"].to_numpy(), used["label"].to_numpy())
    own = used[["fold", "index"]].merge(own, on=["fold", "index"], validate="one_to_one")
    source, network = None, None
    if opened is not None and chosen is not None:
        source = _source(opened, chosen, used, folder)
        warn_of_idle_accelerator()
        if len(own) < len(used):
            network = load_model(job, description, opened.dataset)
    return Opened(
        references=references,
        own=own,
        images=used,
        source=source,
        normalisation=read_normalisation(description),
        job=job,
        description=description,
        network=network,
        epochs=epochs,
        remark=remark,
        batch_size=batch_size * _devices() if source is not None else batch_size,
        versions=versions,
    )


def _devices() -> int:
    import jax

    return len(jax.local_devices())


def _epochs(job: Job, description: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """The kept epochs that --train.keep-every names, and what is to be said of them."""
    if not job.experiment.model.trained:
        return (), "No average over epochs: the network was not trained here."
    from jaxcurv.training.checkpoints import kept_epochs

    recipe = job.experiment.train
    if recipe.keep_every is None:
        return (), (
            "No average over epochs: training kept none but the best and the newest; train with "
            "--train.keep-every N into another folder to have them."
        )
    asked = range(recipe.keep_every, recipe.epochs + 1, recipe.keep_every)
    kept = set(kept_epochs(job.folder / description["checkpoint"]))
    found = tuple(epoch for epoch in asked if epoch in kept)
    lacking = ", ".join(str(epoch) for epoch in asked if epoch not in kept)
    if len(found) < 2:
        return (), (
            f"No average over epochs: of those that --train.keep-every {recipe.keep_every} names "
            f"{len(found)} is kept, and it takes two; train with a smaller N into another folder."
        )
    remark = f"Missing from the average, for they were not kept: epochs {lacking}."
    return found, remark if lacking else ""


def _source(
    images: Images, chosen: Mapping[Fold, Chosen], used: pd.DataFrame, folder: Path
) -> Samples:
    """The images to score, in the order of their indices, in memory where they fit."""
    positions = np.concatenate([one.positions for one in chosen.values()])
    # Train and validation are parts of one source.
    official = Chosen(next(iter(chosen.values())).source, positions)
    order = np.argsort(official.indices)
    samples = official.take(order[np.isin(official.indices[order], used["index"])])
    if not np.array_equal(samples.labels, used.sort_values("index")["label"]):
        raise ValueError(
            f"mismatched labels: the scores in {folder} are of other images than "
            f"{images.dataset.name}'s"
        )
    return read_small({"train": samples})["train"]


def run(opened: Opened, experiment: Experiment, settings: Validate, out: Path) -> None:
    """Compares every score with every reference, draws and prints it.

    Only with all images of both folds there are rows of the two together: of some, the folds would
    be sampled at different rates.

    Leaves scores.parquet (a row an image: fold, index, label, the scores of the run's checkpoint
    and their averages over epochs; not the published figures), validate.csv (`tabulate`), drawn as
    validate.png, .svg and .pdf, and settings.json. The pieces/ of a run that was interrupted, or
    had fewer images or epochs, are not computed again.
    """
    estimators = experiment.score.estimators
    origin = {
        "weights": identity_of_model(opened.job, opened.description),
        "data": experiment.data.deciding,
        "seed": experiment.seed,
        "batch_size": settings.batch_size,  # a table that is under way is of one size
    }
    one_probe = replace(experiment.score.estimator, probes=settings.probes)
    missing = len(opened.images) - len(opened.own)
    with progress(missing + len(opened.epochs) * len(opened.images), "validate"):
        scores = _complete(opened, estimators, origin, out)
        averages = _average(opened, one_probe, origin, out)
    if averages is not None:
        scores = scores.merge(averages, on="index", validate="one_to_one")
    write_parquet(out / "scores.parquet", scores)
    confidence = experiment.analyse.confidence
    table = tabulate(
        scores,
        opened.references,
        len(opened.epochs),
        confidence=confidence,
        pooled=settings.samples == "all" and settings.limit is None,
    )
    draw(table, opened.references, out / "validate.png", experiment.data.title)
    write_json(
        out / "settings.json",
        {
            **origin,
            "model": {key: one for key, one in opened.description.items() if key != "class_names"},
            "references": {
                one.name: {"file": one.path.name, "sha256": one.digest, "images": len(one.values)}
                for one in opened.references
            },
            "samples": {fold: len(rows) for fold, rows in folds(scores)},
            "estimators": {name: describe(one) for name, one in estimators.items()},
            "epochs": list(opened.epochs),
            "estimator_of_epochs": describe(one_probe) if opened.epochs else None,
            "confidence": confidence,
            "device": device(),
            "versions": opened.versions,
        },
    )
    show(table, opened.references)
    for sentence in filter(None, [*verdicts(table, opened.references), opened.remark]):
        print(sentence)
    print(f"{out / 'validate.png'}, validate.csv and scores.parquet")


def _complete(
    opened: Opened, estimators: Mapping[str, Estimator], origin: Mapping[str, Any], out: Path
) -> pd.DataFrame:
    """The scores of the run's checkpoint: its own, and those of images that it has not scored."""
    scores = opened.own
    if len(scores) < len(opened.images):
        import jax

        assert opened.source is not None
        unknown = ~np.isin(opened.source.indices, scores["index"])
        model, params = opened.network
        named = {name: describe(one) for name, one in estimators.items()}
        place = out / "pieces" / key_of({**origin, "estimators": named})
        new = _scored(
            opened,
            model,
            params,
            positions=np.flatnonzero(unknown),
            key=jax.random.key(origin["seed"]),
            estimators=estimators,
            out=place / "others.parquet",
        )
        of_fold = opened.images.set_index("index")["fold"]
        new.insert(0, "fold", new["index"].map(of_fold))
        scores = pd.concat([scores, new], ignore_index=True)
    columns = [name for name in score_columns(scores) if not name.endswith(LABEL_FREE)]
    return opened.images.merge(
        scores[["fold", "index", *columns]], on=["fold", "index"], validate="one_to_one"
    )


def _average(
    opened: Opened, estimator: FiniteDifference, origin: Mapping[str, Any], out: Path
) -> pd.DataFrame | None:
    """Index and `AVERAGED` of every image, over the kept epochs; None without any.

    Every epoch has random vectors of its own, so that their errors average out.
    """
    if not opened.epochs:
        return None
    import jax

    assert opened.source is not None
    place = out / "pieces" / key_of({**origin, "estimator": describe(estimator)})
    sums = pd.DataFrame(0.0, index=opened.source.indices, columns=list(AVERAGED))
    for epoch in opened.epochs:
        table = _scored(
            opened,
            load_flax(opened.job, opened.description, epoch),
            None,
            positions=np.arange(len(opened.source)),
            key=jax.random.fold_in(jax.random.key(origin["seed"]), epoch),
            estimators={"curvature": estimator},
            out=place / f"epoch_{epoch}.parquet",
        )
        sums += table.set_index("index")[list(AVERAGED)]
    means = (sums / len(opened.epochs)).rename(columns=AVERAGED)
    return means.rename_axis("index").reset_index()


def _scored(
    opened: Opened,
    model: Any,
    params: Any,
    *,
    positions: npt.NDArray[np.int64],
    key: Any,
    estimators: Mapping[str, Estimator],
    out: Path,
) -> pd.DataFrame:
    from jaxcurv.dataset import score_dataset

    assert opened.source is not None
    chosen = opened.source.take(positions)
    with progress(len(chosen), out.stem.replace("_", " ")):
        return score_dataset(
            model,
            Normalised(chosen, opened.normalisation),
            params=params,
            key=key,
            estimators=estimators,
            out=out,
            batch_size=opened.batch_size,
            description=out.stem.replace("_", " "),
        )


STUDY = Study(
    "validate",
    Validate,
    open_run,
    run,
    opened_with=("cscores", "ranking", "average", "samples", "limit", "batch_size"),
    of=("train", "score"),
)
